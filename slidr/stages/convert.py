"""Published checkpoints into ours and back."""

from data.disk import InputError, read_tensors, write_tensors
from slidr.config import Convert
from slidr.minkunet import from_minkowski, to_minkowski
from slidr.student import SPEC_KEYS, Student, StudentSpec, read_checkpoint, save_student


def run(settings: Convert) -> None:
    """Convert by the settings."""
    source, target = settings.source, settings.target
    if settings.to == "minkowski":
        weights = to_minkowski(read_checkpoint(source)["weights"])
        write_tensors(target, {"model_points": weights})
        print(f"convert: {len(weights)} tensors, {source} -> {target}")
        return
    content = read_tensors(source, "model_points", "state_dict", "model")
    weights = from_minkowski(content)
    if "final.weight" not in weights:
        raise InputError(f"{source} lacks the key `final.kernel`; is this the lidar network of a checkpoint?")
    spec = StudentSpec(**{name: getattr(settings, name) for name in SPEC_KEYS})
    student = Student(spec, weights["final.weight"].shape[-1], bn_momentum=0.05, normalize=True)
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
    save_student(target, student, "pretrain")
    others = len(content) - len(weights)
    left_out = f", {others} of other networks and counters left out" if others else ""
    print(f"convert: {len(weights)} tensors of the lidar network{left_out}, {source} -> {target}")
