"""Published checkpoints into ours and back."""

from data.files import InputError
from slidr.config import Convert
from slidr.networks.minkunet import from_minkowski, to_minkowski
from slidr.networks.model_file import HEAD, Model, backbone_weights, head_layers, read_model, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.tensor_files import read_tensors, write_tensors


def run(settings: Convert) -> None:
    """Convert by the settings."""
    source, target = settings.source, settings.target
    if settings.to == "minkowski":
        weights = to_minkowski(_network_weights(read_model(source), source))
        write_tensors(target, {"model_points": weights})
        print(f"convert: {len(weights)} tensors, {source} -> {target}")
        return
    content = read_tensors(source, "model_points", "state_dict", "model")
    weights = from_minkowski(content)
    if f"{HEAD}weight" not in weights:
        raise InputError(f"{source} lacks the key `final.kernel`; is this the lidar network of a checkpoint?")
    spec = StudentSpec(**{name: getattr(settings, name) for name in StudentSpec.model_fields})
    student = Student(spec, weights[f"{HEAD}weight"].shape[-1], bn_momentum=0.05)
    expected, found = (
        {key: list(value.shape) for key, value in to_minkowski(w).items()}
        for w in (student.network.state_dict(), weights)
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
    student.network.load_state_dict(weights, strict=False)
    write_model(
        target,
        stage="pretrain",
        spec=spec,
        backbone=backbone_weights(student),
        point_head=head_layers(student),
    )
    others = len(content) - len(weights)
    left_out = f", {others} of other networks and counters left out" if others else ""
    print(f"convert: {len(weights)} tensors of the lidar network{left_out}, {source} -> {target}")


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
