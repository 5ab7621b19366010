"""Published checkpoints into ours and back."""

import torch

from data.disk import InputError, atomic_write, read_tensors
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
        weights = from_minkowski(read_tensors(settings.source, "model_points", "state_dict", "model"))
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
