"""A pretraining step here is the published code's: the same numbers from the same two real frames, end to end.

From files to parameters, in the order of a step: pairs, augmentations with the published code's draws, the batch,
voxels, pooled features, loss, gradients, and the parameters after it; for SLidR, PPKT and SLidR with a ViT. The stored
numbers are the original's in float64; what it computes in float32 anyway (pairs, voxels) must be equal to the last bit.
"""

import functools
import hashlib
import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import augment
from data.augment import Augmentation, AugmentSettings, apply, draw
from data.datasets import find_dataset
from data.datasets.nuscenes import CAMERAS
from data.frame import Batch, CameraView, Frame, Pairs, collate
from slidr import config
from slidr.losses import infonce
from slidr.methods import find_method, settings_of
from slidr.methods.method import Method
from slidr.networks.minkunet import from_minkowski, to_minkowski
from slidr.networks.student import Student, StudentSpec
from slidr.pooling import pool_pairs
from slidr.teachers import Teacher
from slidr.training import make_optimizer
from tests.data.test_augment import Scripted, pixels
from tests.slidr.test_teachers import seeded
from tests.triton_kernels import test_golden
from tests.triton_kernels.test_golden import relative

PUBLISHED = AugmentSettings()
RECIPE = config.load(None, ["--dataset", "nuscenes"], "pretrain", settings_of)
ULPS = 2e-7  # of a float32 colour in 0..1: processors add in different order


@pytest.fixture(scope="module")
def golden(shared):
    """`golden("B_batch")` -> the arrays of golden/step/B_batch.npz."""
    return lambda name: np.load(shared("golden", "step", f"{name}.npz"))


def meta(arrays) -> dict:
    return json.loads(str(arrays["meta"]))


def sha(values: np.ndarray, dtype: type) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype).tobytes()).hexdigest()


# 1. The frames, and which point is seen at which pixel


@pytest.fixture(scope="module")
def frame(nuscenes_frames) -> Frame:
    return nuscenes_frames[0]


def test_pairs(frame, golden):
    stored = golden("A_pairing_0")
    assert frame.id == str(stored["lidar_token"]) and [view.name for view in frame.cameras] == list(CAMERAS)
    assert all(view.image.shape == (900, 1600, 3) and view.image.dtype == np.uint8 for view in frame.cameras)
    assert sha(frame.points, np.float32) == str(stored["points_sha256"])
    np.testing.assert_array_equal(frame.pairs.point, stored["pairing_points"])
    np.testing.assert_array_equal(pixels(frame.pairs), stored["pairing_images"])
    ids = [frame.cameras[c].superpixels[y, x] for c, y, x in pixels(frame.pairs)]
    np.testing.assert_array_equal(ids, stored["sp_at_pairing"])


# 2. Augmentations: what the published code drew, imposed on ours


def test_rotation_and_flips(frame, golden):
    stored = golden("D_cloud")
    for s in (0, 1):
        moved = apply(frame, Augmentation(angle=meta(stored)[f"rot{s}"]["angle"])).points
        np.testing.assert_allclose(moved[::4, :3], stored[f"rot{s}_out"], rtol=0, atol=1e-5)  # an ulp at 100 m
        np.testing.assert_array_equal(moved[:, 3], frame.points[:, 3])
    for s in (0, 1, 3, 5):
        x, y = (value < 0.5 for _, value in meta(stored)[f"flip{s}"]["log"])
        moved = apply(frame, Augmentation(flip_x=x, flip_y=y)).points[:, :3]
        np.testing.assert_array_equal(moved[:64], stored[f"flip{s}_out_first64"])
        np.testing.assert_allclose(moved.sum(0, dtype=np.float64), stored[f"flip{s}_sum"], rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 15])
def test_cuboids(frame, golden, seed):
    """Which points a cuboid drops, and that it's refused where an image would keep fewer than 1024 pairs (seed 15)."""
    stored = golden("D_dropcuboids")
    expected = meta(stored)[f"s{seed}"]
    rng = Scripted([expected["crop_range"]], [expected["center_index"]])
    cuboid = augment._draw_cuboid(rng, frame.points, frame.pairs, 6, PUBLISHED)
    assert (cuboid is not None) == expected["applied"]
    cut = apply(frame, Augmentation(cuboid=cuboid))
    kept = np.setdiff1d(np.arange(len(frame.points)), stored[f"s{seed}_dropped_indices"])
    np.testing.assert_array_equal(cut.points, frame.points[kept])
    assert len(cut.pairs) == expected["n_pairs_out"]
    assert sha(cut.pairs.point, np.int64) == str(stored[f"s{seed}_pairing_points_sha"])
    assert sha(pixels(cut.pairs), np.int64) == str(stored[f"s{seed}_pairing_images_sha"])


@pytest.mark.parametrize("seed", [0, 1])
def test_which_crops_are_accepted(frame, golden, seed):
    """The boxes that the published code drew for each image: those it refused are refused."""
    crop = meta(golden("D_crop_flip"))[f"crop{seed}"]
    drawn = iter(box for _, box in crop["log"])
    for i, accepted in enumerate(crop["accepted_ijhw_per_image"]):
        tried = [next(drawn)]
        while tried[-1] != accepted:
            tried.append(next(drawn))
        areas_and_aspects = [v for _, _, h, w in tried for v in (h * w / (900 * 1600), math.log(w / h))]
        rng = Scripted(areas_and_aspects, [v for top, left, _, _ in tried for v in (top, left)])
        pairs = frame.pairs.select(frame.pairs.camera == i)
        assert augment._draw_box(rng, (900, 1600), pairs, PUBLISHED) == tuple(accepted)


@pytest.mark.parametrize("seed", [0, 1])
def test_crops_and_image_flips(frame, golden, seed):
    stored = golden("D_crop_flip")
    boxes = tuple(map(tuple, meta(stored)[f"crop{seed}"]["accepted_ijhw_per_image"]))
    flipped = tuple(meta(stored)[f"fliph{seed}"]["flipped"])
    plain = apply(frame, Augmentation(crop=(224, 416), boxes=boxes, mirrored=(False,) * 6))
    np.testing.assert_array_equal(plain.pairs.point, stored[f"crop{seed}_pairing_points"])
    np.testing.assert_array_equal(pixels(plain.pairs), stored[f"crop{seed}_pairing_images"])
    mirrored = apply(frame, Augmentation(crop=(224, 416), boxes=boxes, mirrored=flipped))
    np.testing.assert_array_equal(mirrored.pairs.column, stored[f"fliph{seed}_pairing_images_col2"])
    for name, cut in (("crop", plain), ("fliph", mirrored)):
        images = np.stack([view.image.transpose(2, 0, 1) for view in cut.cameras])
        assert images.dtype == np.float32 and images.shape == (6, 3, 224, 416)
        values = images.ravel()[stored[f"crop{seed}_img_idx"]]
        np.testing.assert_allclose(values, stored[f"{name}{seed}_img_val"], rtol=0, atol=ULPS)
    superpixels = np.stack([view.superpixels for view in mirrored.cameras])
    assert sha(superpixels, np.uint8) == str(stored[f"fliph{seed}_superpixels_sha"])
    # the published code flips in place, so what it stored before the flip is flipped too
    np.testing.assert_array_equal(superpixels, stored[f"crop{seed}_superpixels"])
    for i, view in enumerate(plain.cameras):
        unflipped = view.superpixels[:, ::-1] if flipped[i] else view.superpixels
        np.testing.assert_array_equal(unflipped, superpixels[i])


def test_resizing_without_antialiasing(golden):
    stored = golden("D_resize_synthetic")
    y, x, c = np.mgrid[:900, :1600, :3]
    image = ((7 * y + 13 * x + 101 * c + (y * x) // 97) % 256).astype(np.uint8)
    labels = ((y // 37 * 16 + x // 101) % 256)[..., 0].astype(np.int32)  # stored in 8 bits
    source = Frame("synthetic", np.zeros((0, 4), np.float32), cameras=[CameraView("c", "c", image, labels)])
    for box, colours, ids in (
        ((0, 0, 900, 1600), "resize_val", "label_resized"),
        ((97, 206, 775, 1253), "crop_val", "label_cropped"),
    ):
        view = apply(source, Augmentation(crop=(224, 416), boxes=(box,), mirrored=(False,))).cameras[0]
        values = view.image.transpose(2, 0, 1).ravel()[stored["idx"]]
        np.testing.assert_allclose(values, stored[colours], rtol=0, atol=ULPS)
        np.testing.assert_array_equal(view.superpixels, stored[ids])


# 3. The batch: both frames through validation's plain resize, and their voxels


@pytest.fixture(scope="module")
def batch(nuscenes_frames) -> Batch:
    plain = AugmentSettings(train=False)
    return collate([apply(f, draw(np.random.default_rng(0), f, plain)) for f in nuscenes_frames])


def test_images_superpixels_and_pairs_of_the_batch(batch, nuscenes_frames, golden):
    """No pair is lost at the images' edges."""
    stored = golden("B_batch")
    np.testing.assert_array_equal(pixels(batch.pairs), stored["pairing_images"])
    np.testing.assert_array_equal(batch.superpixels, stored["superpixels"])
    values = batch.images.numpy().ravel()[stored["images_sample_idx"]]
    np.testing.assert_allclose(values, stored["images_sample_val"], rtol=0, atol=ULPS)
    assert batch.points.equal(torch.from_numpy(np.concatenate([f.points for f in nuscenes_frames])))


def test_voxels(batch, golden):
    """The same voxels with the same features, whatever their order; each point in its own; the pairs' voxels."""
    stored = golden("B_batch")
    student = Student(StudentSpec(**{name: getattr(RECIPE, name) for name in StudentSpec.model_fields}), 64, 0.05)
    x, v = student.voxels(batch)
    first_of_second = int((stored["sinput_C"][:, 0] == 0).sum())
    theirs = np.concatenate((stored["inverse_0"], stored["inverse_1"] + first_of_second))
    assert len(v.coordinates) == len(stored["sinput_C"])
    np.testing.assert_array_equal(v.coordinates[v.inverse], stored["sinput_C"][theirs])
    np.testing.assert_array_equal(x.features[v.inverse], stored["sinput_F"][theirs])
    paired = v.coordinates[v.inverse[batch.pairs.point]]
    np.testing.assert_array_equal(paired, stored["sinput_C"][stored["pairing_points"]])


# 4. The objective of stored features


def test_the_loss_of_the_stored_superpoints_and_superpixels(golden):
    stored = golden("C_slidr_f64")
    k, q = (torch.from_numpy(stored[name]).double() for name in "kq")
    loss, accuracy = infonce(k, q, RECIPE.temperature)
    assert abs(float(loss) - float(stored["loss"])) < 1e-5
    assert abs(float(accuracy) - float(stored["argmax_acc"])) < 0.5 / len(k)


# 5. One step of training from seeded weights: in float64, and in float32 as training runs. The method that a user runs
# is built from its recipe; its batch is what its own sample collates from the real frames.

RECIPES = {"slidr": ("slidr_nuscenes", 1), "ppkt": ("ppkt_nuscenes", 1), "vit": ("slidr_nuscenes_vit", 2)}
GRADIENTS = {torch.float64: 1e-5, torch.float32: 4e-2}  # in float32 a ReLU near 0 flips here or there
LAST = ("final.kernel", "final.bias", "decoder.0.weight", "decoder.0.bias")  # no ReLU after them


def seeded_method(recipe: str, dtype: torch.dtype) -> Method:
    """The method of a recipe with the golden files' weights in student, teacher and head."""
    name, seed = RECIPES[recipe]
    settings = config.load(None, [name, "--teacher_weights=random"], "pretrain", settings_of)
    method = find_method(settings.method)(settings, find_dataset("nuscenes"))
    network = method.student.network
    theirs = {key: test_golden.seeded(key, value.shape, 0) for key, value in to_minkowski(network.state_dict()).items()}
    network.load_state_dict(from_minkowski(theirs), strict=False)
    teacher, head = method.images.teacher.network, method.images.head
    teacher.load_state_dict(seeded(teacher.state_dict(), seed))
    weights = seeded({f"decoder.0.{key}": value for key, value in head.state_dict().items()}, seed)
    head.load_state_dict({key.removeprefix("decoder.0."): value for key, value in weights.items()})
    return method.to(dtype)


def renamed(student: dict, head: dict) -> dict[str, torch.Tensor]:
    """Copies of the tensors of student and head, under the original's keys."""
    named = to_minkowski(student) | {f"decoder.0.{key}": value for key, value in head.items()}
    return {key: value.detach().clone() for key, value in named.items()}


@pytest.fixture(scope="module")
def real_batch(nuscenes_frames, golden):
    """`real_batch(method)` -> both frames as the method's own validation sample draws and collates them; images rounded
    to half precision, as the golden files were made."""

    def make(method: Method) -> Batch:
        reader = SimpleNamespace(
            ids=[frame.id for frame in nuscenes_frames],
            intensity_offset=0.0,
            intensity_scale=1.0,
            read=lambda index, needs, rng: nuscenes_frames[index],
        )
        sample = method.sample(reader, train=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("data.samples.single.load_or_compute", lambda view, *maps: view.superpixels)
            items = [sample.draw(index, np.random.default_rng(0))[0] for index in (0, 1)]
        images = torch.from_numpy(golden("C_images_f16")["input_I"]).float()
        batch = sample.collate(items)
        assert (batch.images - images).abs().max() < 1e-3
        return replace(batch, images=images)

    return make


@pytest.fixture(
    scope="module", params=[(r, d) for r in RECIPES for d in GRADIENTS], ids=lambda p: f"{p[0]}-{str(p[1])[6:]}"
)
def step(request, golden, real_batch) -> SimpleNamespace:
    """What one step of a method computes, `stored` beside it; PPKT's 4096 pairs are those that the original drew.

    The forward passes before and after it (`first`, `second`; SLidR's in eval mode: `validation`), and by the
    original's keys `gradients`, batch-norm `statistics` after the first pass, parameters `before` and `after`.
    """
    recipe, dtype = request.param
    stored, method = golden(f"C_{recipe}_f64"), seeded_method(recipe, dtype)
    batch = real_batch(method)
    batch = replace(batch, images=batch.images.to(dtype))
    student, head = method.student.network, method.images.head
    seen = {}
    method.student.register_forward_hook(lambda module, inputs, output: seen.update(points=output))
    method.images.register_forward_hook(lambda module, inputs, output: seen.update(pixels=output))
    method.images.teacher = remembering(method.images.teacher, dtype)
    if recipe == "ppkt":
        method.draw_pairs = lambda pairs: pairs.select(torch.from_numpy(stored["idx"]))
    pooling = importlib.import_module(f"slidr.methods.{'ppkt' if recipe == 'ppkt' else 'slidr'}")
    contrast = pooling.infonce
    image, y, x = torch.from_numpy(stored["teacher_pix"]).T
    looked_at = Pairs(torch.zeros_like(image), image, y, x)
    b = golden("B_batch")
    first_of_second = int((b["sinput_C"][:, 0] == 0).sum())
    theirs = np.concatenate((b["inverse_0"], b["inverse_1"] + first_of_second))  # the original's row of each point
    _, a_point = np.unique(theirs, return_index=True)

    def forward() -> SimpleNamespace:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "infonce", lambda k, q, t: (seen.update(k=k, q=q), contrast(k, q, t))[1])
            loss = method(batch).loss
        features, voxels = seen["points"]
        points = features[voxels.inverse][a_point[stored["student_rows"]]]
        _, pixels = pool_pairs(features, seen["pixels"], batch.images.shape[2:], looked_at)
        return SimpleNamespace(points=points, pixels=pixels, k=seen["k"], q=seen["q"], loss=loss)

    result = SimpleNamespace(recipe=recipe, dtype=dtype, stored=stored)
    if recipe == "slidr":
        with torch.no_grad():
            method.eval()
            result.validation = forward()
            method.train()
    result.first = forward()
    if "loss_after" in stored:
        parameters = dict(student.named_parameters()), dict(head.named_parameters())
        result.statistics, result.before = renamed(dict(student.named_buffers()), {}), renamed(*parameters)
        optimizer = make_optimizer(method.settings, method.parameter_groups())
        result.first.loss.backward()
        result.gradients = renamed(*({key: p.grad for key, p in module.items()} for module in parameters))
        optimizer.step()
        result.after, result.second = renamed(*parameters), forward()
    return result


def remembering(teacher: Teacher, dtype: torch.dtype):
    """What the frozen teacher sees in the one batch, computed once, in float32."""

    @functools.cache
    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([teacher(pair.float()) for pair in images.split(2)]).to(dtype)

    return features


def errors(step: SimpleNamespace, name: str, values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative L2 error of each tensor: at 64 stored entries, or of its norm, whichever is larger."""
    keys, norms, places, entries = (step.stored[f"{name}_{part}"] for part in ("keys", "l2", "idx", "val"))
    assert set(keys) == set(values)
    found = {}
    for key, norm, place, entry in zip(keys, norms, places, entries, strict=True):
        value = values[key].double().flatten()
        found[str(key)] = max(relative(value[place], entry), abs(float(value.norm()) / norm - 1))
    return found


@pytest.mark.slow
def test_outputs_and_pooled_features(step):
    assert relative(step.first.points, step.stored["student_out"]) < 2e-5
    assert relative(step.first.pixels, step.stored["teacher_out"]) < 2e-5
    if step.recipe == "ppkt":
        assert relative(step.first.k[:512], step.stored["k_rows512"]) < 2e-5
        assert relative(step.first.q[:512], step.stored["q_rows512"]) < 2e-5
    else:
        assert relative(step.first.k, step.stored["k"]) < 2e-5 and relative(step.first.q, step.stored["q"]) < 2e-5


@pytest.mark.slow
def test_the_loss(step, golden):
    assert abs(float(step.first.loss.detach()) - float(step.stored["loss"])) < 1e-5
    if step.recipe == "slidr":
        assert abs(float(step.validation.loss) - float(golden("C_slidr_val_f64")["val_loss"])) < 1e-5


@pytest.mark.slow
def test_gradients_and_batch_norm(step):
    if step.recipe == "vit":
        pytest.skip("the original's gradients are not stored for the ViT")
    gradients = errors(step, "grad", step.gradients)
    assert len(gradients) == 190 and max(gradients.values()) < GRADIENTS[step.dtype]
    assert max(gradients[key] for key in LAST) < 2e-5
    assert max(errors(step, "bn1", step.statistics).values()) < 2e-5


@pytest.mark.slow
def test_parameters_after_the_step_and_the_loss_with_them(step):
    if step.recipe == "vit":
        pytest.skip("the original's step is not stored for the ViT")
    assert max(errors(step, "param1", step.after).values()) < 1e-4
    moved = {key: value - step.before[key] for key, value in step.after.items()}
    assert max(errors(step, "delta1", moved).values()) < GRADIENTS[step.dtype]
    assert abs(float(step.second.loss.detach()) - float(step.stored["loss_after"])) < 1e-4
