"""Published checkpoints into ours and back."""

from pathlib import Path

import torch

from data.disk import InputError, atomic_write
from slidr.config import Convert
from slidr.minkunet import from_minkowski, to_minkowski
from slidr.student import Student, StudentSpec, load_weights, read_checkpoint, save_student

PUBLISHED = StudentSpec(architecture="res16unet34c", width=1.0, grid="cylindrical", voxel_size=(0.1, 1.0, 0.1))


def run(settings: Convert) -> None:
    """Convert by the settings."""
    if settings.to == "minkowski":
        weights = to_minkowski(read_checkpoint(settings.source)["weights"])
        with atomic_write(settings.target) as temporary:
            torch.save({"model_points": weights}, temporary)
    else:
        weights = from_minkowski(_published_weights(settings.source))
        if "final.weight" not in weights:
            raise InputError(
                f"{settings.source} lacks the key `final.kernel`; is this the lidar network of a checkpoint?"
            )
        out_channels = weights["final.weight"].shape[-1]
        student = Student(PUBLISHED, out_channels, bn_momentum=0.05, normalize=True)
        content = {"spec": PUBLISHED.model_dump(), "weights": weights}
        load_weights(student, content, settings.source, with_head=True)
        save_student(settings.target, student, "pretrain")
    print(f"convert: {len(weights)} tensors, {settings.source} -> {settings.target}")


def _published_weights(path: Path) -> dict[str, torch.Tensor]:
    """The student's state dict in a published checkpoint: `model_points`, `state_dict`, `model`, or the file itself."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a checkpoint.") from error
    except Exception as error:  # torch.load raises a dozen types for files that are no checkpoint
        raise InputError(f"{path} is no checkpoint of plain tensors ({type(error).__name__}).") from error
    for name in ("model_points", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return content[name]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{path} holds no network: expected `model_points`, `state_dict` or a plain state dict.")
    return content
