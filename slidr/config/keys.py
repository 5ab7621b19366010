"""How a key is declared, and the types of keys: what a value must be, whatever the stage."""

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from data.superpixels import PUBLISHED

# Above these limits numbers overflow what they are stored in, or ask for more than any machine has
Count = Annotated[int, Field(ge=1, le=10**9)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Index = Annotated[int, Field(ge=0, lt=2**63)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Pixels = Annotated[int, Field(ge=1, le=16384)]  # along an edge
Dots = Annotated[int, Field(ge=1, le=2400)]  # an inch
Positive = Annotated[float, Field(gt=0, le=1e38)]
NonNegative = Annotated[float, Field(ge=0, le=1e38)]
Width = Annotated[float, Field(gt=0, le=64)]
Scale = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
Percent = Annotated[float, Field(gt=0, le=100)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Metres = Annotated[float, Field(allow_inf_nan=False)]
Sweep = Annotated[tuple[Percent, ...], Field(min_length=1)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Grid = Literal["cylindrical", "cartesian"]
Architecture = Literal["res16unet14c", "res16unet18c", "res16unet34c"]


def _edges(size: tuple[float, float, float]) -> tuple[float, float, float]:
    if not all(0 < edge < 1e38 for edge in size):
        raise ValueError("every voxel edge must be a number above 0")
    return size


def _cuda(device: object) -> object:
    return f"cuda:{device}" if re.fullmatch(r"\d+", str(device)) else device


def _one_folder(name: str) -> str:
    if name in (".", "..") or len(name.encode(errors="replace")) > 200 or not re.fullmatch(r"[^/\\]+", name):
        raise ValueError("it names one folder, in at most 200 letters")
    if not name.isprintable():
        raise ValueError("it has control characters")
    return name


def _kind_of_maps(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.lower() in ("none", "null"):
        raise ValueError("it names a folder of maps: letters, digits, - and _")
    if name not in PUBLISHED and name.startswith(tuple(PUBLISHED)):
        computed = ", ".join(PUBLISHED)
        raise ValueError(
            f"names that begin with {computed} are those of computed maps; choose another for others' maps"
        )
    return name


def _part(value: object) -> object:
    part = re.fullmatch(r"(\d+)/(\d+)", str(value))
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        raise ValueError("write i/n with i from 1 to n, for example 2/4")
    return value


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the first number must not be above the second")
    return ends


VoxelSize = Annotated[tuple[float, float, float], AfterValidator(_edges)]
Device = Annotated[str, BeforeValidator(_cuda)]
FolderName = Annotated[str, AfterValidator(_one_folder)]
KindOfMaps = Annotated[str, AfterValidator(_kind_of_maps)]
Part = Annotated[str, BeforeValidator(_part)]  # i/n
Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]


def _corners(area: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if not (area[0] < area[2] and area[1] < area[3]):
        raise ValueError("it is x and y of the near corner, then those of the far one, which are larger")
    return area


Area = Annotated[tuple[Metres, Metres, Metres, Metres], AfterValidator(_corners)]
MOST_CELLS = 2048  # along an axis of a bird's-eye grid


def cells_of(area: tuple[float, float, float, float], cell: float) -> tuple[int, int]:
    """Cells of `cell` metres along x and y of an area (x, y of two corners); ValueError if they are too many."""
    sides = [(high - low) / cell for low, high in zip(area[:2], area[2:], strict=True)]
    if max(sides) > MOST_CELLS:
        raise ValueError(f"`area` has more than {MOST_CELLS} cells of {cell:g} m along an axis; raise --cell")
    return tuple(max(1, math.ceil(side - 1e-6)) for side in sides)


def key(default, help: str, decides: bool = True):
    """A setting with its default and what `--help` says of it (unit and meaning).

    decides: whether it decides a run's numbers; if so it must be equal for a run to go on, and recipes state it.
    """
    return Field(default=default, description=help, json_schema_extra={"decides": decides})
