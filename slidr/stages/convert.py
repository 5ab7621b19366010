"""Published checkpoints into ours and back."""

from pathlib import Path

from data.datasets import find_dataset
from data.datasets.dataset import DataSet
from data.files import InputError
from slidr.config import Convert
from slidr.networks.minkunet import from_minkowski, shape_of, to_minkowski
from slidr.networks.model_file import HEAD, InputMeaning, Model, parameter_shapes, read_model, write_model
from slidr.networks.student import StudentSpec
from slidr.tensor_files import as_weights, read_tensors, write_tensors


def run(settings: Convert) -> None:
    """Convert by the settings."""
    source, target = settings.source, settings.target
    if settings.to == "minkowski":
        weights = to_minkowski(_network_weights(read_model(source), source))
        write_tensors(target, {"model_points": weights})
        print(f"convert: {len(weights)} tensors, {source} -> {target}")
        return
    content = read_tensors(source, "model_points", "state_dict", "model")
    weights = as_weights(source, from_minkowski(content))
    if f"{HEAD}weight" not in weights:
        raise InputError(f"{source} lacks the key `final.kernel`; is this the lidar network of a checkpoint?")
    spec = _spec(settings, weights)
    _require_fit(source, spec, weights)
    head = [{"weight": weights[f"{HEAD}weight"][0].T, "bias": weights[f"{HEAD}bias"]}]
    record = _data_set(settings, source, len(head[0]["bias"]))
    write_model(
        target,
        stage="fewshot" if record else "pretrain",
        spec=spec,
        backbone={name: value for name, value in weights.items() if not name.startswith(HEAD)},
        **(
            {
                "class_head": head,
                "classes": record.classes,
                "input": InputMeaning(intensity_offset=record.intensity_offset),
            }
            if record
            else {"point_head": head}
        ),
    )
    others = len(content) - len(weights)
    left_out = f", {others} of other networks and counters left out" if others else ""
    what = f"{len(record.classes)} classes of {record.name}" if record else f"{len(head[0]['bias'])} features"
    print(
        f"convert: {len(weights)} tensors of the lidar network{left_out}, {source} -> {target}: {spec.architecture} "
        f"of width {spec.width:g}, {what}"
    )


def _spec(settings: Convert, weights: dict) -> StudentSpec:
    """What the settings say; architecture and width, where they leave them open, by the weights' shapes."""
    stated = {name: getattr(settings, name) for name in StudentSpec.model_fields}
    if None in (settings.architecture, settings.width):
        architecture, width = shape_of(weights)
        stated["architecture"] = settings.architecture or architecture
        stated["width"] = settings.width or width
    return StudentSpec(**stated)


def _require_fit(source: Path, spec: StudentSpec, weights: dict) -> None:
    """Raises InputError, in the published names, for a weight that is missing, not known or misshapen."""
    expected, found = (
        {key: list(value.shape) for key, value in to_minkowski(w).items()}
        for w in (parameter_shapes(spec, weights[f"{HEAD}weight"].shape[-1]), weights)
    )
    for key in expected | found:
        if key not in found:
            raise InputError(f"{source} lacks the key `{key}` of a {spec.architecture}; name another --architecture.")
        if key not in expected:
            raise InputError(f"{source} holds `{key}`, which no {spec.architecture} has; name another --architecture.")
        if found[key] != expected[key]:
            raise InputError(
                f"{source}: `{key}` has shape {found[key]}, a {spec.architecture} of --width {spec.width:g} needs "
                f"{expected[key]}."
            )


def _data_set(settings: Convert, source: Path, outputs: int) -> DataSet | None:
    """The data set whose classes the last layer gives; None if it gives features.

    Raises InputError if the settings name one with another number of classes.
    """
    records = [find_dataset(name) for name in ([settings.dataset] if settings.dataset else ("nuscenes", "kitti"))]
    record = next((record for record in records if len(record.classes) == outputs), None)
    if settings.dataset and record is None:
        raise InputError(
            f"{source} gives {outputs} numbers a voxel, {settings.dataset} has {len(records[0].classes)} classes; "
            "choose another --dataset or leave it out."
        )
    return record


def _network_weights(model: Model, source) -> dict:
    """The backbone with the one linear layer on it, classes if there are any, as the published layout has it.

    Raises InputError if there is no such layer: the published layout has a place for one.
    """
    head = model.class_head or model.point_head
    if len(head) != 1:
        raise InputError(
            f"{source} has a head of {len(head)} layers; the published layout has a place for exactly one."
        )
    return model.backbone | {f"{HEAD}weight": head[0]["weight"].T[None], f"{HEAD}bias": head[0]["bias"]}
