"""ScaLR and the late layers: losses and gradients against their formulas written out naively."""

import pytest
import torch
from torch.nn import functional as F

from data.frame import Pairs
from tests.slidr.methods.test_contract import made, settings_for, world  # noqa: F401 (a fixture)


def pixels(maps: torch.Tensor, size: tuple[int, int], pairs: Pairs) -> torch.Tensor:
    full = F.normalize(F.interpolate(maps.double(), size, mode="bilinear", align_corners=True), dim=1)
    return full[pairs.camera, :, pairs.row, pairs.column]


def through(head: torch.nn.Sequential, features: torch.Tensor) -> torch.Tensor:
    first, *others = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    x = features @ first.weight.T + first.bias
    for layer in others:
        x = x.clamp(min=0) @ layer.weight.T + layer.bias
    return x


def naive(method, batch) -> torch.Tensor:
    features, voxels = method.student(batch)
    point, size = voxels.inverse[batch.pairs.point], batch.images.shape[2:]
    if method.settings.method == "scalr":
        k = F.normalize(through(method.point_head, features)[point], dim=1)
        return (k - pixels(method.teacher(batch.images), size, batch.pairs)).norm(dim=1).mean()
    maps, whole = method.teacher.late(batch.images, len(method.heads))
    terms = []
    for head, target in zip(method.heads, maps, strict=True):
        k = F.normalize(through(head, features)[point], dim=1)
        terms.append(1 - (k * pixels(target, size, batch.pairs)).sum(1).mean())
    seen, frame = through(method.class_head, features), voxels.coordinates[:, 0]
    errors = [
        (seen[frame == i].max(0).values - whole[batch.image_frame == i].max(0).values).square().mean()
        for i in range(len(batch.ids))
    ]
    return sum(terms) / len(terms) + method.settings.class_weight * sum(errors) / len(errors)


@pytest.mark.parametrize("count", [7, None], ids=["fewer pairs than voxels", "more"])
@pytest.mark.parametrize("name, head", [("scalr", "linear"), ("scalr", "mlp"), ("late_layers", "mlp")])
def test_it_is_the_formula(world, tmp_path, monkeypatch, name, head, count):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    values = {"hidden": 9, "images_a_scan": "all", "class_weight": 0.3}
    known = {key: value for key, value in values.items() if key != "class_weight" or name == "late_layers"}
    method, loader = made(settings_for(name, world, tmp_path, head=head, **known))
    method = method.double().train()
    batch = next(iter(loader))
    batch.points, batch.features = batch.points.double(), batch.features.double()
    if count:  # so few go through the head one by one
        batch.pairs = batch.pairs.select(torch.arange(count) * 3)
    parameters = [p for p in method.parameters() if p.requires_grad]
    found, wanted = [], []
    for loss, results in ((method(batch).loss, found), (naive(method, batch), wanted)):
        results += [loss, *torch.autograd.grad(loss, parameters)]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
