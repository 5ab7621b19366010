"""Which teachers there are, where their weights come from, and how a file of any public layout gets into a network."""

import hashlib
import http.client
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data.files import InputError, atomic_write
from data.progress import Progress
from slidr.teachers.resnet import BasicBlock, Bottleneck, ResNet
from slidr.teachers.vit import VisionTransformer
from slidr.tensor_files import as_weights, read_tensors

DOWNLOAD_SECONDS = 3600


@dataclass(frozen=True)
class Entry:
    """One teacher by name.

    build: architecture and its arguments; then the weights' address, the SHA-256 of the file and its size in millions
    of bytes, rounded up: not more than that is taken from a server. Where no SHA-256 is known from several independent
    sources nothing is downloaded: the user fetches the file himself.
    """

    build: tuple
    url: str | None = None
    sha256: str | None = None
    megabytes: int = 0

    def where(self, folder: Path) -> str:
        """Where its weights are, for `run.py env`."""
        if self.url is None:
            return "no public weights: --teacher_weights FILE, or random"
        file = folder / self.url.rsplit("/", 1)[1]
        if file.exists():
            return f"in {file}"
        return f"downloaded from {self.url} on first use" if self.sha256 else f"fetch {self.url} to {file}"


_META = "https://dl.fbaipublicfiles.com"
_RESNET50 = (ResNet, Bottleneck, (3, 4, 6, 3))
_S, _B, _L = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
TEACHERS = {
    "resnet50_imagenet": Entry(
        _RESNET50,
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        103,
    ),
    # of MoCo's files only MD5s are published, and only their first digits: v2 a04e12f8, v1 b251726a
    "resnet50_moco_v2": Entry(_RESNET50, f"{_META}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"),
    "resnet50_moco_v1": Entry(_RESNET50, f"{_META}/moco/moco_checkpoints/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar"),
    "resnet50_swav": Entry(_RESNET50, f"{_META}/deepcluster/swav_800ep_pretrain.pth.tar"),
    "resnet50_deepcluster_v2": Entry(_RESNET50, f"{_META}/deepcluster/deepclusterv2_800ep_pretrain.pth.tar"),
    "resnet50_dino": Entry(_RESNET50, f"{_META}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"),
    "vit_small_16_dino": Entry(
        (VisionTransformer, *_S, 16, 224, False),
        f"{_META}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        "1566d50496f27f52f07fea6094fa29b2fdd6fae89da65bdd3ebc3b24ef6b7eb7",
        87,
    ),
    "vit_small_8_dino": Entry(
        (VisionTransformer, *_S, 8, 224, False), f"{_META}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"
    ),
    "vit_base_16_dino": Entry(
        (VisionTransformer, *_B, 16, 224, False),
        f"{_META}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e",
        344,
    ),
    "vit_base_8_dino": Entry(
        (VisionTransformer, *_B, 8, 224, False), f"{_META}/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"
    ),
    "dinov2_vits14": Entry(
        (VisionTransformer, *_S, 14, 518, True),
        f"{_META}/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        89,
    ),
    "dinov2_vitb14": Entry(
        (VisionTransformer, *_B, 14, 518, True),
        f"{_META}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        347,
    ),
    "dinov2_vitl14": Entry(
        (VisionTransformer, *_L, 14, 518, True),
        f"{_META}/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        1218,
    ),
    "dinov2_vits14_reg": Entry(
        (VisionTransformer, *_S, 14, 518, True, 4), f"{_META}/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"
    ),
    "dinov2_vitb14_reg": Entry(
        (VisionTransformer, *_B, 14, 518, True, 4), f"{_META}/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"
    ),
    "dinov2_vitl14_reg": Entry(
        (VisionTransformer, *_L, 14, 518, True, 4), f"{_META}/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"
    ),
    # DINOv3's weights are given out one by one, after a licence is accepted: by file only
    "dinov3_vits16": Entry((VisionTransformer, *_S, 16, None, True, 4)),
    "dinov3_vitb16": Entry((VisionTransformer, *_B, 16, None, True, 4)),
    "dinov3_vitl16": Entry((VisionTransformer, *_L, 16, None, True, 4)),
    "resnet18_imagenet": Entry(
        (ResNet, BasicBlock, (2, 2, 2, 2)),
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        47,
    ),
    "resnet_small": Entry((ResNet, BasicBlock, (1, 1), 32)),
}


def public_file(name: str, entry: Entry, folder: Path) -> Path:
    if entry.url is None:
        raise InputError(f"`{name}` has no public weights; pass --teacher_weights random or a file.")
    path = folder / entry.url.rsplit("/", 1)[1]
    if path.exists():
        return path
    if entry.sha256 is None:
        raise InputError(
            f"the weights of `{name}` have no published SHA-256, so they are not downloaded unseen: "
            f"fetch {entry.url} to {path} yourself, or pass --teacher_weights FILE."
        )
    with atomic_write(path) as temporary:
        try:
            digest = _download(entry.url, temporary, entry.megabytes * 1_000_000)
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            raise InputError(
                f"cannot download {entry.url} ({error}): fetch it to {path}, or pass --teacher_weights FILE or random."
            ) from error
        if digest != entry.sha256:
            raise InputError(
                f"{entry.url} arrived with the SHA-256 {digest}, not {entry.sha256}, and was thrown away: try again "
                f"later, or pass --teacher_weights FILE."
            )
    return path


def _download(url: str, path: Path, most: int) -> str:
    """Write `url` to `path`, showing progress; the SHA-256 of what came.

    Raises OSError or HTTPException if that fails, if more than `most` bytes come, or fewer than the server promised.
    """
    digest, deadline, came = hashlib.sha256(), time.monotonic() + DOWNLOAD_SECONDS, 0
    with urllib.request.urlopen(url, timeout=30) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with Progress(total=size or None, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[1]) as bar:
            while chunk := response.read1(1 << 20):  # what is there, at most 1 MiB
                came += len(chunk)
                if max(came, size) > most:
                    raise OSError(f"it sends more than the {most:,} bytes that the file has")
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                if time.monotonic() > deadline:  # a server that trickles never meets the socket's own time-out
                    raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS} s")
        if came < size:
            raise OSError(f"the connection ended after {came:,} of {size:,} bytes")
    return digest.hexdigest()


_PREFIXES = (
    *("module.", "_orig_mod.", "model.", "teacher.", "encoder_q.", "base_encoder.", "backbone.", "encoder."),
    *("dinov2_with_registers.", "dinov2.", "dinov3_vit.", "vit.", "embeddings."),  # transformers
)
_OTHERS = (  # beside the backbone: heads, queues, and the networks that a teacher was trained with
    *("fc.", "head.", "heads.", "mlp_head.", "projection_head.", "prototypes.", "encoder_k.", "queue", "mask_token"),
    *("student.", "momentum_encoder.", "predictor.", "dino_head.", "ibot_head.", "classifier.", "pooler."),
    *("rope", "local_cls_norm."),  # DINOv3: fixed frequencies, and a norm of training alone
)
_NAMES = (  # of a ViT's weights in transformers and timm, and the official ones, which are ours
    (r"^position_embeddings$", "pos_embed"),
    (r"^patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.attn\.([qkv])_bias$", r".attn.\1.bias"),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$|\.gamma_(\d)$", r".ls\1\2.gamma"),
)


def load_weights(network: nn.Module, path: Path) -> None:
    """Put a checkpoint of any public layout into the network; InputError names the first key that does not fit.

    A ViT's may have the official names (DINO, DINOv2, DINOv3), those of Hugging Face's transformers, or timm's.
    """
    content = read_tensors(path, "state_dict", "teacher", "model")
    own, found, names = network.state_dict(), {}, {}
    for key, value in content.items():
        bare = key
        while bare not in own and (prefix := next((p for p in _PREFIXES if bare.startswith(p)), None)):
            bare = bare[len(prefix) :]
        if isinstance(network, VisionTransformer) and bare not in own:
            bare = _official(bare, own)
        if bare in found and not bare.startswith(_OTHERS):
            raise InputError(f"{path} holds `{names[bare]}` and `{key}`, which both mean `{bare}`; remove one of them.")
        found[bare], names[bare] = value, key
    if isinstance(network, VisionTransformer):
        _join(found, own, path)
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            found.setdefault(key, value)  # older files lack it, and eval mode never reads it
        _require(found, key, value.shape, path)
    for key in sorted(found.keys() - own.keys()):
        if not key.startswith(_OTHERS):
            raise InputError(f"{path} holds the unknown key `{names[key]}`; is it a checkpoint of this teacher?")
    counters = {key: value for key, value in own.items() if not value.is_floating_point()}
    network.load_state_dict(counters | as_weights(path, {key: found[key] for key in own.keys() - counters.keys()}))


def _require(found: dict, key: str, shape: torch.Size, path: Path) -> torch.Tensor:
    """The tensor of that key. Raises InputError if there is none, or if it has another shape."""
    if not isinstance(found.get(key), torch.Tensor):
        raise InputError(f"{path} lacks the key `{key}`; is it a checkpoint of this teacher?")
    if found[key].shape != shape:
        raise InputError(f"{path}: `{key}` has shape {list(found[key].shape)}, this teacher needs {list(shape)}.")
    return found[key]


def _official(key: str, own: dict) -> str:
    """The official name of what transformers or timm call `key`; `key` itself if it is none of theirs."""
    if key in ("register_tokens", "reg_token"):
        return "storage_tokens" if "storage_tokens" in own else "register_tokens"
    for theirs, official in _NAMES:
        key = re.sub(theirs, official, key)
    return key


def _join(found: dict, own: dict, path: Path) -> None:
    """What transformers and timm store in parts becomes whole, in `found`, under its official name.

    Queries, keys and values are three matrices in transformers, and three biases in timm. DINOv3's keys have no bias:
    its official files hold one, and a mask that says so (`LinearKMaskedBias`); timm's hold none at all where all are
    zero. DINOv2 with registers lacks the class token's position in timm, which has added it to the token.
    """
    places = found.get("pos_embed")
    if "register_tokens" in own and isinstance(places, torch.Tensor) and places.dim() == 3:
        if places.shape[1] == own["pos_embed"].shape[1] - 1:
            found["pos_embed"] = torch.cat((places.new_zeros(1, 1, places.shape[2]), places), 1)
    keys_unbiased = "storage_tokens" in own
    none_biased = keys_unbiased and not any(re.search(r"\.attn\.(qkv|q|v)\.bias(_mask)?$", key) for key in found)
    for key in [key for key in own if ".attn.qkv." in key]:
        rows, *columns = own[key].shape
        part, parts = torch.Size((rows // 3, *columns)), [key.replace("qkv", name) for name in "qkv"]
        whole = key in found
        if not whole and keys_unbiased and key.endswith("bias") and (none_biased or parts[0] in found):
            for name in parts if none_biased else parts[1:2]:
                found.setdefault(name, torch.zeros(part))
        if not whole and any(name in found for name in parts):
            weights = as_weights(path, {name: _require(found, name, part, path) for name in parts})
            found[key] = torch.cat(list(weights.values()))
            for name in parts:
                del found[name]
        if found.pop(f"{key}_mask", None) is not None:
            found[key] = _require(found, key, own[key].shape, path).clone()
            found[key][rows // 3 : 2 * rows // 3] = 0
