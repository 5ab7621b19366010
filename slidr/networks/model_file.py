"""model.pt: a trained lidar network in parts that every stage understands.

    backbone     weights of the U-Net, 96 channels a voxel at width 1
    point_head   layers from the backbone into the feature space of pretraining; [] = identity
    image_head   layers from the teacher's features into the same space; [] = identity, None = no images were used
    class_head   layers to classes, of a segmentation network; None = it is none
    class_input  what they take: the backbone's features, or the L2-normalised ones of point_head (classes by example)
    detector     head for boxes on the backbone: its classes, the numbers of its grid, its weights; None = it has none
    teacher      name, layer and SHA-256 of the frozen image network, or None
    input        what the network takes: columns of a point, and scale and offset of the stored intensity

Layers are a list of {"weight": [out, in], "bias": [out]} with a ReLU between one and the next. Features to compare are
L2-normalised point_head(backbone); similarity to an image is that to normalised image_head(teacher).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from data.files import InputError
from slidr.networks.detector import BirdsEyeHead, Detector, DetectorSpec
from slidr.networks.minkunet import UNREAD
from slidr.networks.student import RowNorm, Student, StudentSpec
from slidr.tensor_files import as_weights, read_tensors, write_tensors

POINT = "x", "y", "z", "intensity"  # what a network takes of a point
HEAD = "final."  # the last layer in a network's state dict


def _chained(layers: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    before = None
    for layer in layers:
        if layer.keys() != {"weight", "bias"} or layer["weight"].ndim != 2:
            raise ValueError("a layer has a weight [out, in] and a bias [out]")
        out, into = layer["weight"].shape
        if layer["bias"].shape != (out,) or before not in (None, into):
            raise ValueError("the layers do not fit each other")
        before = out
    return layers


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > 100:
        raise ValueError("a name has up to 100 letters")
    return text


Name = Annotated[str, AfterValidator(_name)]  # it will be printed
Layers = Annotated[list[dict[str, torch.Tensor]], AfterValidator(_chained)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class InputMeaning(_Part):
    """What the network takes of a point: its feature is intensity as stored * scale + offset."""

    columns: tuple[Name, ...] = POINT
    intensity_scale: FiniteFloat = 1.0
    intensity_offset: FiniteFloat = 0.0


class TeacherIdentity(_Part):
    """Which frozen image network, and which of its layers."""

    name: Name
    layer: Name
    sha256: Name


class Pretraining(_Part):
    """How a network was pretrained, so that figures can say so."""

    method: Name
    dataset: Name


class TaskRecord(_Part):
    """What a network was trained for, and how, which decides what published figures say beside its own.

    head: of a probe. epoch: "last", or "best" on the split that it was validated on.
    """

    stage: Name
    dataset: Name
    pct: FiniteFloat
    head: Name = "linear"
    epoch: Name = "last"


class DetectorPart(_Part):
    """The head of a detector (`slidr.networks.detector`)."""

    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    spec: DetectorSpec
    weights: dict[str, torch.Tensor]


class Model(_Part):
    """The content of a model.pt."""

    format: Literal[2] = 2
    stage: Name
    spec: StudentSpec
    input: InputMeaning = InputMeaning()
    backbone: dict[str, torch.Tensor]
    point_head: Layers = []
    image_head: Layers | None = None
    class_head: Layers | None = None
    class_input: Literal["backbone", "point_head"] = "backbone"
    detector: DetectorPart | None = None
    teacher: TeacherIdentity | None = None
    pretraining: Pretraining | None = None
    classes: tuple[Name, ...] = ()
    task: TaskRecord | None = None


def backbone_weights(student: Student) -> dict[str, torch.Tensor]:
    """The weights of a student without its last layer, on the CPU."""
    state = student.network.state_dict()
    return {k: v.detach().cpu() for k, v in state.items() if not k.endswith(UNREAD) and not k.startswith(HEAD)}


def head_layers(student: Student) -> Layers:
    """The last layer of a student as layers; none if it has none."""
    final = student.network.final
    return [] if final is None else [{"weight": final.weight.detach().cpu()[0].T, "bias": final.bias.detach().cpu()}]


def layers_of(head: torch.nn.Sequential) -> Layers:
    """The layers of a head (`slidr.networks.student.make_head`); its batch norm, as in eval mode, joins the first."""
    linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    layers = [{"weight": layer.weight.detach().cpu(), "bias": layer.bias.detach().cpu()} for layer in linear]
    if isinstance(head[0], RowNorm):
        bn, first = head[0].bn, layers[0]
        scale = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
        shift = bn.bias.detach().double() - bn.running_mean.double() * scale
        weight, bias = first["weight"].double() * scale.cpu(), first["bias"] + first["weight"].double() @ shift.cpu()
        layers[0] = {"weight": weight.to(first["weight"]), "bias": bias.to(first["bias"])}
    return layers


def parameter_shapes(spec: StudentSpec, out_channels: int | None) -> dict[str, torch.Tensor]:
    """What a network's state dict must look like, without its numbers and the memory for them."""
    with torch.device("meta"):
        return Student(spec, out_channels, bn_momentum=0.1).network.state_dict()


def apply_layers(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    """`[N, in]` -> `[N, out]` through the layers, a ReLU between one and the next."""
    for i, layer in enumerate(layers):
        x = torch.nn.functional.linear(torch.relu(x) if i else x, layer["weight"].to(x), layer["bias"].to(x))
    return x


def point_channels(model: Model, student: Student) -> int:
    """Numbers a point in the space of pretraining."""
    return len(model.point_head[-1]["bias"]) if model.point_head else student.network.channels


def point_features(model: Model, features: torch.Tensor) -> torch.Tensor:
    """The backbone's features `[N, C]` -> L2-normalised ones in the space of pretraining, which images share."""
    return torch.nn.functional.normalize(apply_layers(model.point_head, features), dim=1)


def class_logits(model: Model, features: torch.Tensor) -> torch.Tensor:
    """The backbone's features `[N, C]` -> logits `[N, K]`, of a model with a `class_head`."""
    features = point_features(model, features) if model.class_input == "point_head" else features
    return apply_layers(model.class_head, features)


def write_model(path: Path, **parts: object) -> None:
    """Write the parts of a `Model`."""
    model = Model(**parts)
    content = {name: getattr(model, name) for name in Model.model_fields}
    plain = {
        k: v.model_dump(mode="json", exclude={"weights"}) if isinstance(v, BaseModel) else v for k, v in content.items()
    }
    plain["classes"] = list(model.classes)
    if model.detector:
        plain["detector"]["weights"] = model.detector.weights
    write_tensors(path, plain)


def read_model(path: Path) -> Model:
    """The content of a model.pt, whatever its format; InputError if the file is something else."""
    content = read_tensors(path)
    try:
        model = Model(**(_from_format_1(content) if content.get("format") == 1 else content))
    except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(
            f"{path} is no model.pt of this program; name one, or bring a published one in with `run.py convert`."
        ) from error
    heads = {name: getattr(model, name) for name in ("point_head", "image_head", "class_head")}
    checked = {name: layers and [as_weights(path, layer) for layer in layers] for name, layers in heads.items()}
    if model.detector:
        weights = as_weights(path, model.detector.weights)
        checked["detector"] = model.detector.model_copy(update={"weights": weights})
    return model.model_copy(update=checked | {"backbone": as_weights(path, model.backbone)})


def _from_format_1(content: dict) -> dict:
    """Format 1 held the whole network's weights, and neither input nor image head nor how it was pretrained."""
    weights = content["weights"]
    head = [{"weight": weights[f"{HEAD}weight"][0].T, "bias": weights[f"{HEAD}bias"]}]
    spec = {name: content["spec"][name] for name in StudentSpec.model_fields}
    return {
        "stage": content["stage"],
        "spec": spec,
        "backbone": {name: value for name, value in weights.items() if not name.startswith(HEAD)},
        "classes": content["classes"],
        "task": content.get("task"),
        "class_head" if content["classes"] else "point_head": head,
    }


def load_student(model: Model, path: Path, out_channels: int | None, bn_momentum: float, **spec: object) -> Student:
    """A student with the backbone of a model.pt and a new last layer of `out_channels`, or none.

    Args:
        model: of `read_model(path)`.
        spec: keys of StudentSpec that are asked for; they must be the model's.

    Raises InputError if they differ (both values named), if the input is another, or if a weight is missing or
    misshapen (named).
    """
    for name, value in spec.items():
        if value != (theirs := getattr(model.spec, name)):
            raise InputError(
                f"{path} was trained with {name} {theirs}, this run has {value}; drop --{name} or choose other "
                "--weights."
            )
    if model.input.columns != POINT:
        raise InputError(
            f"{path} takes {', '.join(model.input.columns)} of a point, this program gives {', '.join(POINT)}; choose "
            "other --weights."
        )
    own = {k: v for k, v in parameter_shapes(model.spec, None).items() if not k.endswith(UNREAD)}
    _require_fit(path, model.backbone, own)
    student = Student(model.spec, out_channels, bn_momentum)  # not before it is known that it is as large as its file
    channels = {"backbone": student.network.channels}
    channels["point_head"] = point_channels(model, student)
    for name, source in {"point_head": "backbone", "class_head": model.class_input}.items():
        layers = getattr(model, name)
        if layers and layers[0]["weight"].shape[1] != channels[source]:
            raise InputError(
                f"{path}: its {name} takes {layers[0]['weight'].shape[1]} channels, its {source} gives "
                f"{channels[source]}; is it damaged?"
            )
    student.network.load_state_dict(model.backbone, strict=False)
    return student


def _require_fit(path: Path, weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Raises InputError if a weight is missing, unknown or misshapen (named), beside those that a network has."""
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            raise InputError(f"{path}: the key `{name}` is {'missing' if name in own else 'not known'}; is it damaged?")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"{path}: `{name}` has shape {list(weights[name].shape)}, this network needs {list(own[name].shape)}."
            )


def load_segmenter(model: Model, path: Path) -> tuple[Student, Callable[[torch.Tensor], torch.Tensor]]:
    """The student of a model.pt without a last layer, and the backbone's features `[V, C]` -> logits `[V, K]`.

    Raises InputError if it has none.
    """
    if not model.class_head:
        raise InputError(
            f"{path} comes from {model.stage}, where layers to classes are needed; name a model.pt of linprobe, "
            "fewshot or zeroshot."
        )
    return load_student(model, path, None, bn_momentum=0.02), partial(class_logits, model)


def load_detector(model: Model, path: Path) -> Detector:
    """The detector of a model.pt. Raises InputError if it has none, or if a weight is missing or misshapen (named)."""
    part = model.detector
    if part is None:
        raise InputError(f"{path} comes from {model.stage} and has no head for boxes; name a model.pt of detect.")
    student = load_student(model, path, None, bn_momentum=0.02)
    with torch.device("meta"):
        own = BirdsEyeHead(student.network.channels, len(part.classes), part.spec).state_dict()
    _require_fit(path, part.weights, own)
    detector = Detector(student, part.classes, part.spec)
    detector.head.load_state_dict(part.weights)
    return detector


def newest_model(output: Path, *stages: str) -> Path | None:
    """The newest model.pt under `output/<stage>/*/`, or None."""
    found = [path for stage in stages for path in (output / stage).glob("*/model.pt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
