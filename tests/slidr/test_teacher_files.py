"""Weights of image networks under the names of timm, of Hugging Face's transformers, and of the official files."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import pytest
import torch

from data.files import InputError
from slidr.teachers import TEACHERS, load_teacher
from slidr.teachers.vit import VisionTransformer
from slidr.teachers.weights import Entry, load_weights
from tests.slidr.test_teachers import build, randomised, safetensors

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def timm():
    """An independent implementation. Of what it imports only its networks are used: for anything else it lacks here
    (torchvision, the hub's client) stand-ins do."""

    class StandIns(MetaPathFinder, Loader):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torchvision", "huggingface_hub", "safetensors"):
                return ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            return MagicMock(name=spec.name, __path__=[], __spec__=spec)

        def exec_module(self, module):
            pass

    before, finder = set(sys.modules), StandIns()
    sys.meta_path.append(finder)  # last: what is installed comes first
    try:
        yield pytest.importorskip("timm")
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]


@torch.no_grad()
def test_resnet_50_is_timms(timm):
    """The strided one as it is; the dilated one at every eighth position, which dilation leaves as they were."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    strided, dilated = (randomised(build("resnet50_imagenet", dilated=d)) for d in (False, True))
    theirs = timm.create_model("resnet50", num_classes=0, global_pool="").eval()
    theirs.load_state_dict(strided.state_dict())
    wanted = theirs(x)
    assert wanted.shape == (1, 2048, 2, 3) and wanted.std() > 0.1
    assert (strided(x) - wanted).norm() < 2e-6 * wanted.norm()
    assert dilated(x).shape == (1, 2048, 16, 24)
    assert (dilated(x)[..., ::8, ::8] - wanted).norm() < 2e-6 * wanted.norm()


@torch.no_grad()
def assert_same_features(ours: VisionTransformer, theirs: torch.nn.Module, size: tuple[int, int]) -> None:
    """Of two random images of that many patches, up to rounding."""
    rows, columns = size
    x = torch.randn(2, 3, rows * ours.stride, columns * ours.stride, generator=torch.Generator().manual_seed(0))
    wanted = theirs.forward_features(x)[:, 1 + ours.registers :].transpose(1, 2).unflatten(2, size)
    assert wanted.std() > 0.1 and (ours(x) - wanted).norm() < 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("name", "patch", "side", "layer_scale", "registers"),
    [
        ("vit_small_patch16_224", 16, 80, False, 0),
        ("vit_small_patch14_dinov2", 14, 70, True, 0),
        ("vit_small_patch14_reg4_dinov2", 14, 70, True, 4),
        ("vit_small_patch16_dinov3", 16, None, True, 4),
        ("vit_small_patch16_dinov3_qkvb", 16, None, True, 4),
    ],
)
def test_timms_files_give_timms_features(timm, tmp_path, name, patch, side, layer_scale, registers):
    """DINOv3 at any size; the others at the one that their positions are stored for (resizing is each one's own)."""
    sizes = {"img_size": side} if side else {}
    theirs = randomised(timm.create_model(name, num_classes=0, global_pool="", **sizes))
    (tmp_path / "w.safetensors").write_bytes(safetensors(theirs.state_dict()))
    ours = VisionTransformer(384, 12, 6, patch, side, layer_scale, registers).eval()
    load_weights(ours, tmp_path / "w.safetensors")
    assert_same_features(ours, theirs, (5, 5) if side else (4, 7))


def test_official_dinov3_files_mask_the_bias_of_the_keys(timm, tmp_path):
    """What timm makes of such a file, whose keys' bias is anything; with all else that these files hold."""
    state = randomised(VisionTransformer(384, 12, 6, 16, None, True, 4)).state_dict()
    mask = torch.cat((torch.ones(384), torch.zeros(384), torch.ones(384)))
    state |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(12)}
    state |= {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    state |= {"local_cls_norm.weight": torch.ones(384), "local_cls_norm.bias": torch.ones(384)}
    torch.save(state, tmp_path / "w.pth")
    theirs = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, global_pool="").eval()
    theirs.load_state_dict(timm.models.eva.checkpoint_filter_fn(dict(state), theirs))
    ours = VisionTransformer(384, 12, 6, 16, None, True, 4).eval()
    load_weights(ours, tmp_path / "w.pth")
    assert_same_features(ours, theirs, (4, 7))


# transformers' names, as its conversion scripts have them, for networks of two blocks and 16 channels

PARTS = "weight", "bias"
VIT = {  # convert_dino_to_pytorch.py
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "encoder.layer.{}.layernorm_before",
    "norm2": "encoder.layer.{}.layernorm_after",
    "attn.qkv": "encoder.layer.{}.attention.attention.query,key,value",
    "attn.proj": "encoder.layer.{}.attention.output.dense",
    "mlp.fc1": "encoder.layer.{}.intermediate.dense",
    "mlp.fc2": "encoder.layer.{}.output.dense",
}
DINOV2 = VIT | {  # convert_dinov2_with_registers_to_hf.py
    "register_tokens": "embeddings.register_tokens",
    "norm1": "encoder.layer.{}.norm1",
    "norm2": "encoder.layer.{}.norm2",
    "mlp.fc1": "encoder.layer.{}.mlp.fc1",
    "mlp.fc2": "encoder.layer.{}.mlp.fc2",
    "ls1.gamma": "encoder.layer.{}.layer_scale1.lambda1",
    "ls2.gamma": "encoder.layer.{}.layer_scale2.lambda1",
}
DINOV3 = {  # convert_dinov3_vit_to_hf.py
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
    "norm1": "layer.{}.norm1",
    "norm2": "layer.{}.norm2",
    "attn.qkv": "layer.{}.attention.q_proj,k_proj,v_proj",
    "attn.proj": "layer.{}.attention.o_proj",
    "mlp.fc1": "layer.{}.mlp.up_proj",
    "mlp.fc2": "layer.{}.mlp.down_proj",
    "ls1.gamma": "layer.{}.layer_scale1.lambda1",
    "ls2.gamma": "layer.{}.layer_scale2.lambda1",
}
NETWORKS = {
    "DINO": (VIT, (16, 2, 2, 14, 28, False)),
    "DINOv2": (DINOV2, (16, 2, 2, 14, 28, True)),
    "DINOv2 with registers": (DINOV2, (16, 2, 2, 14, 28, True, 3)),
    "DINOv3": (DINOV3, (16, 2, 2, 14, None, True, 3)),
}


def in_transformers_names(state: Weights, names: dict[str, str]) -> Weights:
    """Official weights as transformers stores them."""
    content = {"embeddings.mask_token": torch.zeros(1, 16)}
    for key, value in state.items():
        block, inner = key.split(".", 2)[1:] if key.startswith("blocks.") else ("", key)
        stem, _, part = inner.rpartition(".") if inner.endswith(PARTS) else (inner, "", "")
        theirs, ending = names[stem].format(block), f".{part}" if part else ""
        if stem == "attn.qkv":
            stem, _, thirds = theirs.rpartition(".")
            for third, rows in zip(thirds.split(","), value.chunk(3), strict=True):
                content[f"{stem}.{third}{ending}"] = rows.contiguous()
        else:
            content[theirs + ending] = value
    return {key: value for key, value in content.items() if not key.endswith("k_proj.bias")}


def official_weights(name: str) -> Weights:
    """Random; DINOv3's with the bias of the keys as it counts."""
    state = randomised(VisionTransformer(*NETWORKS[name][1])).state_dict()
    for key, value in state.items():
        if name == "DINOv3" and key.endswith("qkv.bias"):
            value[16:32] = 0
    return state


@pytest.mark.parametrize("prefix", ["", "model.", "dinov2."])
@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_files_load(tmp_path, name, prefix):
    """As a model of their own, inside others, and beside a head."""
    names, shape = NETWORKS[name]
    state = official_weights(name)
    content = {prefix + key: value for key, value in in_transformers_names(state, names).items()}
    content["classifier.weight"] = torch.zeros(2, 16)
    (tmp_path / "model.safetensors").write_bytes(safetensors(content))
    torch.save(content, tmp_path / "pytorch_model.bin")
    for file in ("model.safetensors", "pytorch_model.bin"):
        network = VisionTransformer(*shape)
        load_weights(network, tmp_path / file)
        loaded = network.state_dict()
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_teacher_by_name_takes_such_a_file(monkeypatch, tmp_path):
    monkeypatch.setitem(TEACHERS, "tiny", Entry((VisionTransformer, *NETWORKS["DINOv3"][1])))
    state = official_weights("DINOv3")
    (tmp_path / "w.safetensors").write_bytes(safetensors(in_transformers_names(state, DINOV3)))
    torch.save(state, tmp_path / "w.pth")
    theirs, official = (load_teacher("tiny", str(tmp_path / file)) for file in ("w.safetensors", "w.pth"))
    images = torch.rand(1, 3, 28, 42)
    assert torch.equal(theirs(images), official(images)) and theirs.identity() == official.identity()


QUERY, KEY = (f"encoder.layer.1.attention.attention.{part}.weight" for part in ("query", "key"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("DINOv2", lambda w: w.pop(KEY), "lacks the key `blocks.1.attn.k.weight`"),
        ("DINOv2", lambda w: w.pop(KEY.replace("weight", "bias")), "lacks the key `blocks.1.attn.k.bias`"),
        ("DINOv2", lambda w: w.pop("layernorm.bias"), "lacks the key `norm.bias`"),
        ("DINOv2", lambda w: w.update({QUERY: torch.zeros(16, 15)}), r"`blocks.1.attn.q.weight` has shape \[16, 15\]"),
        ("DINOv2", lambda w: w.update({QUERY: w[QUERY] > 0}), "`blocks.1.attn.q.weight` is no weight but torch.bool"),
        ("DINOv2", lambda w: w.update({QUERY: w[QUERY] / 0}), "`blocks.1.attn.q.weight` holds NaN or infinity"),
        ("DINOv2", lambda w: w.update({f"vit.{KEY}": w[KEY]}), f"holds `{KEY}` and `vit.{KEY}`, which both mean"),
        ("DINOv2", lambda w: w.update({"blocks.1.attn.qkv.weight": torch.zeros(48, 16)}), f"unknown key `{KEY}`"),
        ("DINOv2", lambda w: w.update({"encoder.layer.2.norm1.bias": torch.zeros(16)}), "key `encoder.layer.2.norm1"),
        ("DINOv3", lambda w: w.pop("layer.1.attention.v_proj.bias"), "lacks the key `blocks.1.attn.v.bias`"),
        ("DINOv3", lambda w: w.pop("layer.1.attention.q_proj.bias"), "lacks the key `blocks.1.attn.q.bias`"),
        (
            "DINOv3",
            lambda w: w.update({"blocks.1.attn.qkv.bias": torch.zeros(48)}),
            "key `layer.1.attention.q_proj.bias",
        ),
        ("DINOv3", lambda w: w.pop("embeddings.register_tokens"), "lacks the key `storage_tokens`"),
    ],
)
def test_a_file_of_transformers_that_does_not_fit_names_the_key(tmp_path, name, change, words):
    names, shape = NETWORKS[name]
    content = in_transformers_names(official_weights(name), names)
    change(content)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=words):
        load_weights(VisionTransformer(*shape), tmp_path / "w.pth")


@pytest.mark.parametrize("layer_scale", [False, True], ids=["DINO", "DINOv2"])
def test_transformer_checkpoints_load_by_their_public_keys(monkeypatch, tmp_path, layer_scale):
    """In half precision, with the mask token that DINOv2's files have."""
    monkeypatch.setitem(TEACHERS, "tiny", Entry((VisionTransformer, 16, 1, 2, 14, 28, layer_scale)))
    linear = {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (64, 16), "mlp.fc2": (16, 64)}
    shapes = {"cls_token": (1, 1, 16), "pos_embed": (1, 5, 16), "patch_embed.proj.weight": (16, 3, 14, 14)}
    shapes |= {f"blocks.0.{key}.weight": shape for key, shape in linear.items()}
    shapes |= {f"blocks.0.{key}.bias": shape[:1] for key, shape in linear.items()}
    shapes |= {
        f"{key}.{part}": (16,) for key in ("blocks.0.norm1", "blocks.0.norm2", "norm") for part in ("weight", "bias")
    }
    shapes |= {"patch_embed.proj.bias": (16,), "mask_token": (1, 16)}
    shapes |= {f"blocks.0.{key}.gamma": (16,) for key in ("ls1", "ls2") if layer_scale}
    content = {key: torch.randn(shape).half() for key, shape in shapes.items()}
    torch.save(content, tmp_path / "w.pth")
    loaded = load_teacher("tiny", str(tmp_path / "w.pth")).network.state_dict()
    assert loaded.keys() == content.keys() - {"mask_token"}
    assert all(
        value.dtype == torch.float32 and torch.equal(value, content[key].float()) for key, value in loaded.items()
    )
