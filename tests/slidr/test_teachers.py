"""The image networks against the original's numbers, and every public checkpoint layout."""

import argparse
import hashlib
import io
import json
import os
import random
import sys
import urllib.error
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from data.files import InputError
from data.images import read_image
from slidr.teachers import TEACHERS, Teacher, load_teacher, weights
from slidr.teachers.resnet import BasicBlock, ResNet
from slidr.teachers.vit import VisionTransformer
from slidr.teachers.weights import Entry


def seeded(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The golden files' rule for the image models."""
    weights = {}
    for key, value in state.items():
        shape = tuple(value.shape)
        if "num_batches" in key:
            weights[key] = value
            continue
        u = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) & 0x7FFFFFFF).random_sample(shape)
        if key.endswith("running_mean"):
            u = (2 * u - 1) * 0.1
        elif key.endswith("running_var"):
            u = 0.5 + u
        elif key in ("pos_embed", "cls_token") or key.endswith("bias"):
            u = (2 * u - 1) * 0.2
        elif len(shape) >= 2:
            c = 6 if len(shape) == 4 and not key.startswith(("patch_embed", "decoder")) else 3
            u = (2 * u - 1) * np.sqrt(c / np.prod(shape[1:]))
        else:
            u = (0.5 + u) * (0.3 if key.endswith("bn3.weight") else 1)
        weights[key] = torch.from_numpy(np.float32(u))
    return weights


def build(name: str, **options) -> torch.nn.Module:
    build = TEACHERS[name].build
    return build[0](*build[1:], **options)


@pytest.mark.parametrize(
    ("file", "name", "options", "seed"),
    [
        ("C_slidr_f32", "resnet50_moco_v2", {}, 1),
        ("C_ppkt_f32", "resnet50_moco_v2", {"dilated": False}, 1),
        ("C_vit_f32", "vit_small_16_dino", {}, 2),
    ],
)
def test_features_equal_the_original_on_seeded_weights(shared, file, name, options, seed):
    """One real image through the dilated ResNet-50, the strided one, and ViT-S/16 at a crop it was not trained on."""
    z = np.load(shared("golden", "step", f"{file}.npz"))
    image = torch.from_numpy(np.load(shared("golden", "step", "C_images_f16.npz"))["input_I"][:1]).float()
    network = build(name, **options)
    network.load_state_dict(seeded(network.state_dict(), seed))
    out = Teacher(network, name, "seeded")(image)
    if "vit" in name:  # the file holds the tokens [12, 1 + n, C], the class token first
        tokens, channels = int(z["encoder_shape"][1]), int(z["encoder_shape"][2])
        index = z["encoder_sample_idx"]
        here = (index < tokens * channels) & (index >= channels)
        values = out[0].flatten(1).T.reshape(-1)[torch.from_numpy(index[here] - channels)]
    else:
        here = z["encoder_sample_idx"] < out.numel()
        values = out.reshape(-1)[torch.from_numpy(z["encoder_sample_idx"][here])]
    wanted = torch.from_numpy(z["encoder_sample_val"][here]).float()
    assert here.sum() > 100
    assert (values - wanted).norm() / wanted.norm() < 2e-5


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """In eval mode, with weights and statistics far from their initial ones."""
    network.load_state_dict(seeded(network.state_dict(), 3))
    return network.eval()


def test_the_real_vit_tells_regions_apart(shared):
    """Loads a file of DINOv2's layout in half precision; sky and road differ more than road and road."""
    teacher = load_teacher("dinov2_vits14", str(shared("weights", "vits14_dinov2_layout_fp16.pth")))
    image = read_image(sorted(shared("realdata", "nuscenes2", "samples", "CAM_FRONT").glob("*.jpg"))[0])
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(x, (224, 392), mode="bilinear")
    f = torch.nn.functional.normalize(teacher(x)[0], dim=0)
    sky, road, road_too = f[:, 2, 14], f[:, 14, 11], f[:, 14, 16]
    assert torch.isfinite(f).all() and road @ road_too > road @ sky + 0.1


@pytest.fixture
def small(monkeypatch):
    """A small network under a name with a URL and a checksum, and the bytes of its weights."""
    entry = (ResNet, BasicBlock, (1, 1), 8)
    network = entry[0](*entry[1:])
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    content = buffer.getvalue()
    monkeypatch.setitem(
        TEACHERS, "tiny", Entry(entry, "https://example.org/tiny.pth", hashlib.sha256(content).hexdigest(), 1)
    )
    return network, content


class _Response(io.BytesIO):
    headers = {"Content-Length": "1"}


def test_a_download_is_checked_before_it_gets_its_name(small, monkeypatch, tmp_path):
    network, content = small
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Response(content[:-1] + b"x"))
    with pytest.raises(InputError, match="SHA-256 .* thrown away"):
        load_teacher("tiny", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Response(content))
    teacher = load_teacher("tiny", folder=tmp_path)
    assert torch.equal(teacher.network.conv1.weight, network.conv1.weight)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("downloaded twice"))
    load_teacher("tiny", folder=tmp_path)


class _Broken(_Response):
    def read1(self, *_):
        raise TimeoutError("timed out")


def test_no_network_says_what_to_do(small, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route")

    for answer in (refuse, lambda *_, **__: _Broken()):
        monkeypatch.setattr("urllib.request.urlopen", answer)
        with pytest.raises(InputError, match=r"cannot download .*example.org/tiny.pth .*--teacher_weights FILE"):
            load_teacher("tiny", folder=tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_server_that_trickles_is_given_up(small, monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: _Response(small[1]))
    monkeypatch.setattr(weights, "DOWNLOAD_SECONDS", -1)
    with pytest.raises(InputError, match="not complete after"):
        load_teacher("tiny", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_downloaded_without_a_checksum(monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("downloaded"))
    for name, entry in TEACHERS.items():
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
        if entry.url and not entry.sha256:
            with pytest.raises(InputError, match=r"no published SHA-256.* fetch https://.* --teacher_weights FILE"):
                load_teacher(name, folder=tmp_path)


@pytest.mark.parametrize(
    ("nest", "prefix", "extra"),
    [
        (None, "", {"fc.weight": 1, "fc.bias": 1}),  # torchvision
        (None, "", {}),  # DINO's backbone alone
        (
            "state_dict",
            "module.encoder_q.",
            {"module.encoder_q.fc.0.weight": 1, "module.encoder_q.fc.2.bias": 1, "module.encoder_k.conv1.weight": 1}
            | {"module.queue": 1, "module.queue_ptr": 1},
        ),
        (None, "module.", {"module.projection_head.0.weight": 1, "module.prototypes.weight": 1}),
        (None, "module.", {"module.projection_head.1.running_var": 1, "module.prototypes.prototypes0.weight": 1}),
        ("teacher", "module.backbone.", {"module.head.mlp.0.weight": 1, "module.head.last_layer.weight_g": 1}),
        ("model", "encoder.", {"head.weight": 1}),
        (None, "_orig_mod.", {}),
        ("state_dict", "model.", {}),
        (
            "state_dict",
            "module.base_encoder.",
            {"module.momentum_encoder.conv1.weight": 1, "module.predictor.0.weight": 1},
        ),
        (
            "model",
            "teacher.backbone.",
            {"student.backbone.conv1.weight": 1, "teacher.dino_head.w": 1, "teacher.ibot_head.w": 1},
        ),
    ],
    ids=["torchvision", "DINO", "MoCo", "SwAV", "DeepClusterV2", "DINO in full", "encoder"]
    + ["torch.compile", "Lightning", "MoCo v3", "DINOv2 in full"],
)
def test_public_layouts_load(small, tmp_path, nest, prefix, extra):
    network, _ = small
    content = {prefix + key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    content |= {key: torch.zeros(1) for key in extra}
    torch.save({nest: content} if nest else content, tmp_path / "w.pth")
    teacher = load_teacher("tiny", str(tmp_path / "w.pth"))
    assert torch.equal(teacher.network.layer2[0].conv2.weight, network.layer2[0].conv2.weight)


@pytest.mark.parametrize(
    "beside",
    [
        {"best_acc1": np.float64(71.3), "epoch": np.int64(3), "times": np.zeros(3)},
        {"args": argparse.Namespace(lr=0.1, output=Path("x"), seed=np.float32(1))},
        {"epoch": 3, "arch": "resnet50", "optimizer": {"state": {}}},
    ],
    ids=["numbers of NumPy", "options", "plain values"],
)
@pytest.mark.parametrize("nest", ["state_dict", "teacher", "model"])
def test_what_lies_beside_the_weights_is_passed_over(small, tmp_path, nest, beside):
    torch.save({"state_dict": {nest: dict(small[0].state_dict())}, **beside}, tmp_path / "w.pth")
    teacher = load_teacher("tiny", str(tmp_path / "w.pth"))
    assert torch.equal(teacher.network.conv1.weight, small[0].conv1.weight)


@pytest.mark.parametrize("place", ["pathlib", "pathlib._local"])
def test_paths_as_every_python_writes_them(small, tmp_path, monkeypatch, place):
    """Python 3.13 calls the class pathlib._local.PosixPath, which others do not have."""
    path = type("PosixPath", (), {"__module__": place})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, place, SimpleNamespace(PosixPath=path))
        torch.save({"state_dict": dict(small[0].state_dict()), "output": path()}, tmp_path / "w.pth")
    assert torch.equal(load_teacher("tiny", str(tmp_path / "w.pth")).network.conv1.weight, small[0].conv1.weight)


def safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """A file in Hugging Face's format."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        raw = value.numpy().tobytes()
        kind = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[value.dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors_load(small, tmp_path):
    weights = {f"backbone.{key}": value for key, value in small[0].state_dict().items()}
    weights["backbone.conv1.weight"] = weights["backbone.conv1.weight"].half()
    (tmp_path / "w.safetensors").write_bytes(safetensors(weights))
    loaded = load_teacher("tiny", str(tmp_path / "w.safetensors")).network.state_dict()
    assert torch.equal(loaded["layer2.0.conv2.weight"], small[0].layer2[0].conv2.weight)
    assert torch.equal(loaded["conv1.weight"], small[0].conv1.weight.half().float())
    (tmp_path / "w.safetensors").write_bytes(safetensors(weights)[:-1000])
    with pytest.raises(InputError, match="no checkpoint of plain tensors"):
        load_teacher("tiny", str(tmp_path / "w.safetensors"))


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "a web page, not the file"),
        (b"", "is empty; get it again"),
        (saved({"a": torch.zeros(999)})[:-500], "damaged, cut off or no checkpoint"),
        (saved(nn.Linear(2, 2)), r"holds the object torch.nn.modules.linear.Linear\); save a network's state_dict"),
        (b"noise" * 99, "no checkpoint of plain tensors"),
    ],
    ids=["LFS", "page", "empty", "cut", "module", "noise"],
)
def test_a_file_that_is_something_else_is_called_what_it_is(small, tmp_path, raw, words):
    (tmp_path / "w.pth").write_bytes(raw)
    with pytest.raises(InputError, match=f"w.pth .*{words}"):
        load_teacher("tiny", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_never_waited_for(small, tmp_path, kind):
    kind(tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth: it is a "):
        load_teacher("tiny", str(tmp_path / "w.pth"))


def test_a_flipped_byte_is_noticed(small, tmp_path):
    raw, chance = saved(dict(small[0].state_dict())), random.Random(0)
    for _ in range(50):
        at = chance.randrange(len(raw))
        (tmp_path / "w.pth").write_bytes(raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :])
        try:
            loaded = load_teacher("tiny", str(tmp_path / "w.pth")).network.state_dict()
        except InputError:
            continue
        assert all(torch.equal(loaded[key], value) for key, value in small[0].state_dict().items())  # in a gap


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("layer2.0.conv2.weight"), "lacks the key `layer2.0.conv2.weight`"),
        (lambda w: w.update({"conv1.weight": torch.zeros(1)}), "`conv1.weight` has shape"),
        (lambda w: w.update({"conv1.weight": 3}), "lacks the key `conv1.weight`"),
        (lambda w: w.update({"layer9.weight": torch.zeros(1)}), "unknown key `layer9.weight`"),
        (lambda w: w.update({"module.conv1.weight": w["conv1.weight"]}), "`module.conv1.weight`, which both mean"),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"].int()}), "`conv1.weight` is no weight but torch.int32"),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"] > 0}), "no weight but torch.bool"),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"] + 0j}), "no weight but torch.complex64"),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"] / 0}), "`conv1.weight` holds NaN or infinity"),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"].double() * 1e300}), "holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key(small, tmp_path, change, words):
    weights = dict(small[0].state_dict())
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(InputError, match=words):
        load_teacher("tiny", str(tmp_path / "w.pth"))


def test_a_teacher_is_frozen_and_stays_in_eval_mode():
    teacher = load_teacher("resnet_small", "random")
    holder = torch.nn.Module()
    holder.teacher = teacher  # in training, too: a teacher is no submodule of whoever holds it
    holder.train()
    x = torch.rand(2, 3, 32, 48)
    assert not teacher.network.training and not teacher(x).requires_grad
    assert teacher(x).shape == (2, teacher.channels, 8, 12)
    assert not any(p.requires_grad for p in teacher.network.parameters()) and not holder.state_dict()


def test_random_weights_are_the_same_whatever_the_runs_seed():
    torch.manual_seed(1)
    one = load_teacher("resnet_small", "random")
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == following  # the run's own random numbers are not touched
    assert torch.equal(one.network.conv1.weight, load_teacher("resnet_small", "random").network.conv1.weight)


def test_the_demo_teacher_is_cheap():
    with FlopCounterMode(display=False) as counter:
        assert load_teacher("resnet_small", "random")(torch.rand(1, 3, 112, 208)).shape == (1, 64, 28, 52)
    assert counter.get_total_flops() < 1.5e9


def test_a_resnet_keeps_its_strides_where_asked():
    teacher = load_teacher("resnet_small", "random", dilated=False)
    assert (teacher.stride, teacher(torch.rand(1, 3, 32, 48)).shape) == (8, (1, 64, 4, 6))
    with pytest.raises(InputError, match="`dilated` cannot be false: `vit_small_16_dino` has no strides"):
        load_teacher("vit_small_16_dino", "random", dilated=False)


def test_a_crop_that_the_patch_does_not_divide():
    network = VisionTransformer(16, 1, 2, 14, 28, True)
    with pytest.raises(InputError, match=r"patch of 14 pixels; set --crop to e.g. \[28, 42\]"):
        network(torch.zeros(1, 3, 30, 42))


def test_an_unknown_teacher():
    with pytest.raises(InputError, match="known are resnet50_imagenet"):
        load_teacher("resnet51")


@pytest.mark.parametrize("name", ["resnet_small", "vit_small_16_dino"])
def test_late_layers_end_with_the_last(name):
    images = torch.rand(2, 3, 32, 48)
    teacher = load_teacher(name, "random")
    maps, whole = teacher.late(images, 2)
    assert len(maps) == 2 and whole.shape == (2, teacher.channels)
    last = maps[-1]
    if name.startswith("vit"):
        last = teacher.network.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        torch.testing.assert_close(whole, last.mean((2, 3)))
    torch.testing.assert_close(last, teacher(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_teacher(name, "random", layer="before_norm")(images), maps[-1])
    assert teacher.identity()["layer"] == "last"


def test_position_embeddings_with_registers_are_resized_with_antialiasing():
    """To exactly the size asked for, unlike those without registers."""
    network = randomised(VisionTransformer(16, 1, 2, 14, 140, True, 4))
    stored = network.pos_embed[:, 1:].reshape(1, 10, 10, 16).permute(0, 3, 1, 2)
    resized = F.interpolate(stored, (4, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network._positions(4, 6), torch.cat((network.pos_embed[:, :1], resized), 1))
