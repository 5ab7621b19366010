"""Anybody's superpixel maps: .png and .npz files of segmentation models, imported as maps of our own."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from torch.utils.data import Dataset

from data.files import InputError, open_file
from data.images import image_size, open_image, shrunk
from data.superpixels import MOST, SuperpixelSettings, count_true, map_path, save


def import_all(
    images: list[tuple[str, Path]], maps: Path, folder: Path, settings: SuperpixelSettings, shard: slice, workers: int
) -> tuple[int, int]:
    """Write others' map of each image where ours would be; what is there is replaced.

    Args:
        images: (token, file) of all images; a map bears the token, or the end of the image's path that no other image
            shares (`CAM_FRONT/<name>`, or `<name>`), and ends in .png or .npz.
        maps: folder of the maps that others made.
        folder: of the maps of the data set.
        settings: kind (the name that they get), shrink (the size that they have), ids (see `fitted`).
        shard: which of the images.
        workers: processes that read and write; 0 = this one.

    Returns how many were written, and how many of these were renumbered. Raises InputError for an image without a map
    and for a map that cannot be used.
    """
    names = [file.with_suffix("").parts for _, file in images]
    depth = next(d for d in range(1, 1000) if len({name[-d:] for name in names}) == len(set(names)))
    items = [
        (token, file, [Path(token), *(Path(*name[-d:]) for d in range(depth, len(name)))])
        for (token, file), name in zip(images, names, strict=True)
    ][shard]
    renumbered = count_true(_Imports(items, maps, folder, settings), f"superpixels ({settings.kind})", workers)
    return len(items), renumbered


@dataclass
class _Imports(Dataset):
    """Item i -> whether the map of image i was renumbered as it was written, or why it cannot be used."""

    images: list[tuple[str, Path, list[Path]]]  # token, file, and what its map may be called
    maps: Path
    folder: Path
    settings: SuperpixelSettings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bool | InputError:
        token, file, stems = self.images[index]
        try:
            size = shrunk(image_size(file), self.settings.shrink)
            path = self._find(stems, file)
            ids = read_map(path, size)
            few = fitted(ids, path, self.settings)
            save(map_path(self.folder, self.settings, token), few, file)
        except InputError as error:
            return error
        return few is not ids

    def _find(self, stems: list[Path], file: Path) -> Path:
        tried = [self.maps / f"{stem}{suffix}" for stem in stems for suffix in (".png", ".npz")]
        if path := next((path for path in tried if path.is_file()), None):
            return path
        others = f"{stems[0]}.npz, {stems[1]}.png, ..." if len(stems) > 1 else f"{stems[0]}.npz"
        raise InputError(f"there is no map of the image {file}: {tried[0]} is missing, and so are {others}; add it.")


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The ids of a map `[H, W]` int64 of an image of `size` (H, W).

    A .png of grey values of 8 or 16 bits, or with a palette, holds the ids themselves, one of colours R + 256 G +
    65536 B; an .npz holds one array `[H, W]` of integers, or several of which one is called `ids`. Raises InputError
    if it cannot be read so, has another size, or ids below 0.
    """
    try:
        ids = _npz(path, size) if path.suffix == ".npz" else _png(path)
    except InputError:
        raise
    except Exception as error:  # the ways of two decoders to say "broken"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"cannot read the superpixel map {path} ({reason}); export it again.") from error
    if ids.shape != tuple(size):
        raise InputError(
            f"the superpixel map {path} has {' x '.join(map(str, ids.shape))} pixels, its image needs "
            f"{size[0]} x {size[1]}; make it at that size, or see `superpixel_shrink`."
        )
    if ids.min(initial=0) < 0:
        raise InputError(f"the superpixel map {path} has the id {ids.min()}; add {-ids.min()} to all of its ids.")
    return ids


def fitted(ids: np.ndarray, path: Path, settings: SuperpixelSettings) -> np.ndarray:
    """`ids` themselves if all fit into 16 bits, else others from 0 on in their order; 0 stays 0.

    Raises InputError where images share their ids: renumbered one by one they would not any more.
    """
    if ids.max(initial=0) <= MOST:
        return ids
    if settings.ids == "frame":
        raise InputError(
            f"the superpixel map {path} has the id {ids.max()}, and ids that cameras share cannot be renumbered image "
            f"by image; number them from 0 to {MOST}."
        )
    return np.searchsorted(np.union1d(ids, 0), ids)


def _png(path: Path) -> np.ndarray:
    with open_image(path) as image:
        if image.format != "PNG":
            raise ValueError(f"a {image.format} file, which blurs ids")
        values = np.asarray(image).astype(np.int64)
    if image.mode in ("RGB", "RGBA"):
        return values[..., :3] @ (1, 256, 65536)
    return values


def _npz(path: Path, size: tuple[int, int]) -> np.ndarray:
    """No more of an archive is unpacked than such a map takes, whatever it claims."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        name = names[0] if len(names) == 1 else "ids.npy"
        if name not in names:
            raise ValueError(f"it holds {', '.join(names) or 'nothing'}: call its map `ids`")
        with archive.open(name) as member:
            if npy.read_magic(member) != (1, 0):  # the others' headers may be gigabytes long
                raise ValueError("it is no plain array")
            shape, by_columns, dtype = npy.read_array_header_1_0(member)
            if dtype.kind not in "biu":
                raise ValueError(f"it holds {dtype}, no integers")
            if shape != tuple(size):
                return np.broadcast_to(np.int64(0), shape)  # which will be refused
            raw = member.read(size[0] * size[1] * dtype.itemsize + 1)  # to the end, where its checksum is compared
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C").astype(np.int64)
