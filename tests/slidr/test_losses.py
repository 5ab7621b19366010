"""The first training step of the published code on two real frames: student, teacher, head, loss, SGD."""

import numpy as np
import pytest
import torch

from data.frame import Pairs
from slidr.losses import superpixel_infonce
from slidr.minkunet import MinkUNet, from_minkowski, to_minkowski
from slidr.teachers import ImageHead, Teacher
from tests.slidr.test_teachers import build, seeded
from tests.triton_kernels import test_golden
from triton_kernels import SparseTensor


def relative(a: torch.Tensor, b: np.ndarray) -> float:
    b = torch.from_numpy(b).double()
    return float((a.detach().double() - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name", "options", "seed"),
    [
        ("slidr", "resnet50_moco_v2", {}, 1),
        ("ppkt", "resnet50_moco_v2", {"dilated": False}, 1),
        ("vit", "vit_small_16_dino", {}, 2),
    ],
)
def test_the_first_step_equals_the_original(shared, recipe, name, options, seed):
    """PPKT's 4096 sampled pairs are superpixels of one pixel each; only its and SLidR's second loss is stored."""
    z = np.load(shared("golden", "step", f"C_{recipe}_f64.npz"))
    b = np.load(shared("golden", "step", "B_batch.npz"))
    images = torch.from_numpy(np.load(shared("golden", "step", "C_images_f16.npz"))["input_I"]).float()

    teacher = Teacher(build(name, **options), name, "seeded")
    teacher.network.load_state_dict(seeded(teacher.network.state_dict(), seed))
    head = ImageHead(teacher.channels, 64, teacher.stride)
    head.load_state_dict(
        {
            key: seeded({key.replace("project", "decoder.0"): value}, seed)[key.replace("project", "decoder.0")]
            for key, value in head.state_dict().items()
        }
    )
    student = MinkUNet(64, normalize=True)
    theirs = {key: test_golden.seeded(key, value.shape, 0) for key, value in to_minkowski(student.state_dict()).items()}
    student.load_state_dict(from_minkowski(theirs), strict=False)

    features = torch.cat([teacher(pair) for pair in images.split(2)])
    point, (camera, row, column) = b["pairing_points"], b["pairing_images"].T
    pairs = Pairs(*(torch.from_numpy(np.int64(values)) for values in (point, camera, row, column)))
    superpixels = torch.from_numpy(np.int64(b["superpixels"]))

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        x = SparseTensor(torch.from_numpy(b["sinput_F"]), torch.from_numpy(np.int32(b["sinput_C"])))
        return student(x).features, head(features)

    def loss_of(points: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        if recipe != "ppkt":
            return superpixel_infonce(points, pixels, superpixels, pairs, 0.07)[0]
        drawn = pairs.select(torch.from_numpy(z["idx"]))
        pixels = pixels[drawn.camera, :, drawn.row, drawn.column].T[None, :, None]  # an image of one row
        each, zero = torch.arange(len(drawn)), torch.zeros(len(drawn), dtype=torch.int64)
        return superpixel_infonce(points, pixels, each[None, None], Pairs(drawn.point, zero, zero, each), 0.07)[0]

    points, pixels = outputs()
    assert relative(points[z["student_rows"]], z["student_out"]) < 2e-5
    n, y, x = torch.from_numpy(z["teacher_pix"]).T
    assert relative(pixels[n, :, y, x], z["teacher_out"]) < 2e-5
    loss = loss_of(points, pixels)
    assert abs(float(loss.detach()) - float(z["loss"])) < 1e-5
    if "loss_after" not in z:
        return
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, dampening=0.1, weight_decay=1e-4)
    loss.backward()
    for key, gradient in (("decoder.0.weight", head.project.weight.grad), ("decoder.0.bias", head.project.bias.grad)):
        assert relative(gradient, z[f"gradfull/{key}"]) < 2e-5
    optimizer.step()
    assert abs(float(loss_of(*outputs()).detach()) - float(z["loss_after"])) < 1e-4
