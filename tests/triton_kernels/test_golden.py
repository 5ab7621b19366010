"""Every layer and network of the original engine (MinkowskiEngine 0.5.4): outputs and gradients."""

import json
import zlib

import numpy as np
import pytest
import torch

from slidr.minkunet import MinkUNet, from_minkowski, to_minkowski
from tests.conftest import SHARED
from triton_kernels import CylindricalGrid, SparseConv3d, SparseConvTranspose3d, SparseTensor, voxelize
from triton_kernels.kernel_map import kernel_offsets

LAYERS = sorted(path.stem for path in SHARED.glob("golden/layers/*.npz")) or ["missing"]


def relative(a: torch.Tensor, b: np.ndarray) -> float:
    b = torch.as_tensor(b, dtype=torch.float64)
    return float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-30))


def rows_of(wanted: np.ndarray, coordinates: torch.Tensor) -> list[int]:
    """The row in `coordinates` of each wanted coordinate; both must hold the same set."""
    row = {tuple(c): i for i, c in enumerate(coordinates.tolist())}
    assert len(row) == len(wanted)
    return [row[tuple(c)] for c in wanted.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(shared, name, dtype):
    z = np.load(shared("golden", "layers", f"{name}.npz"))
    meta = json.loads(str(z["meta"]))
    kind = SparseConvTranspose3d if meta["transposed"] else SparseConv3d
    layer = kind(5, 7, meta["kernel_size"], meta["stride"], meta["dilation"], meta["bias"]).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(z["kernel"]).reshape(layer.weight.shape))
        if meta["bias"]:
            layer.bias.copy_(torch.from_numpy(z["bias"]).reshape(-1))
    features = torch.from_numpy(z["in_feats"]).to(dtype).requires_grad_()
    x = SparseTensor(features, torch.from_numpy(z["in_coords"]), meta["in_tensor_stride"])
    cached = meta["transposed"] and "nocache" not in name
    if cached:  # the level to return to
        x.cache.coordinates[tuple(meta["out_tensor_stride"])] = torch.from_numpy(z["out_coords"])
    y = layer(x)
    assert list(y.stride) == meta["out_tensor_stride"]
    rows = rows_of(z["out_coords"], y.coordinates)
    grad_out = torch.zeros_like(y.features)
    grad_out[rows] = torch.from_numpy(z["grad_out"]).to(dtype)
    y.features.backward(grad_out)
    tolerance = 1e-6
    assert relative(y.features[rows], z["out_feats"]) < tolerance
    assert relative(features.grad, z["grad_in"]) < tolerance
    assert (
        relative(layer.weight.grad, z["kernel"] * 0 + z["grad_kernel"]) < tolerance
        if layer.weight.grad.shape == z["grad_kernel"].shape
        else relative(layer.weight.grad[0], z["grad_kernel"]) < tolerance
    )
    if meta["bias"]:
        assert relative(layer.bias.grad, z["grad_bias"].reshape(-1)) < tolerance

    # the pairs themselves, exactly
    if layer.weight.shape[0] > 1 or meta["stride"] != [1, 1, 1]:
        (kernel_map,) = x.cache.maps.values()
        back = np.argsort(rows)  # our output row -> the file's
        ours = []
        for k, (fine, coarse) in enumerate(zip(kernel_map.fine, kernel_map.coarse, strict=True)):
            i, o = (coarse, fine) if meta["transposed"] else (fine, coarse)
            ours += [(k, int(a), int(back[int(b)])) for a, b in zip(i, o, strict=True)]
        assert sorted(ours, key=lambda p: (p[0], p[2], p[1])) == [tuple(p) for p in z["kmap"].tolist()]
        assert (
            np.array_equal(np.array(kernel_offsets(layer.kernel_size)), z["offsets"])
            or meta["dilation"] != [1, 1, 1]
            or meta["in_tensor_stride"] != [1, 1, 1]
        )


def test_quantize(shared):
    z = np.load(shared("golden", "quantize.npz"))
    points = torch.from_numpy(z["points"]).float()
    cells = torch.from_numpy(np.floor(z["cyl"])).float()

    class Given:
        def bins(self, _):
            return cells

    v = voxelize(points, torch.zeros(len(points)), Given())
    order = np.argsort(v.first.numpy())  # the original keeps the order of first occurrence
    assert np.array_equal(v.first.numpy()[order], z["index"])
    assert np.array_equal(v.coordinates.numpy()[order, 1:], z["discrete"])
    assert np.array_equal(np.argsort(order)[v.inverse.numpy()], z["inverse"])
    own = voxelize(points, torch.zeros(len(points)), CylindricalGrid())
    assert (own.coordinates[own.inverse][:, 1:].numpy() != np.floor(z["cyl"])).any(1).mean() < 1e-3


def seeded(key: str, shape: tuple, seed: int) -> torch.Tensor:
    """The README's seeding rule of the full network."""
    u = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) & 0x7FFFFFFF).random_sample(shape)
    if key.endswith(".kernel"):
        u = (2 * u - 1) * np.sqrt(6 / np.prod(shape[:-1]))
    elif key.endswith("bn.weight"):
        u = 0.5 + u
    elif key.endswith(".bias"):
        u = (2 * u - 1) * 0.2
    elif key.endswith("running_mean"):
        u = np.zeros(shape)
    elif key.endswith("running_var"):
        u = np.ones(shape)
    return torch.from_numpy(np.float32(u))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["net_narrow_2k", "net_narrow_k5_norm_2k", "net_full_norm64_2k"])
def test_network(shared, name, dtype):
    z = np.load(shared("golden", f"{name}.npz"))
    meta = json.loads(str(z["meta"]))
    config = meta["config"]
    net = MinkUNet(
        meta["out_channels"], bn_momentum=config["bn_momentum"], normalize=config["normalize_features"],
        planes=tuple(meta["planes"]), stem=meta["init_dim"], stem_kernel=config["kernel_size"],
    )  # fmt: skip
    theirs = to_minkowski(net.state_dict())
    for key, value in theirs.items():
        if f"sd/{key}" in z.files:
            theirs[key] = torch.from_numpy(z[f"sd/{key}"]).reshape(value.shape)
        elif "num_batches" not in key:
            theirs[key] = seeded(key, tuple(value.shape), meta["weight_seed"])
    net.load_state_dict(from_minkowski(theirs))
    net.to(dtype)

    features = torch.from_numpy(z["feats"]).to(dtype).requires_grad_()
    x = SparseTensor(features, torch.from_numpy(z["coords"]))
    stages = {}
    for key in [k for k in z.files if k.startswith("stage/")]:
        module = net.get_submodule(key[6:])
        module.register_forward_hook(lambda m, i, o, key=key: stages.update({key: o}))
    net.train()
    out = net(x).features
    assert relative(out, z["out_train"]) < 1e-5
    loss = (out * torch.from_numpy(z["grad_out"])).sum()
    assert abs(float(loss) - float(z["loss"])) < 1e-4 * max(1, abs(float(z["loss"])))
    loss.backward()
    assert relative(features.grad, z["grad_feats"]) < 1e-5
    grads = to_minkowski({k: p.grad for k, p in net.named_parameters()})
    for i, key in enumerate(z["gradstat_keys"].tolist()):
        g = grads[key].double().reshape(-1)
        assert abs(float(g.norm()) - z["gradstat_l2"][i]) < 1e-4 * z["gradstat_l2"][i]
        assert relative(g[torch.from_numpy(z["gradstat_idx"][i])], z["gradstat_val"][i]) < 1e-4
    for key in [k for k in z.files if k.startswith("grad/")]:
        assert relative(grads[key[5:]].reshape(-1), z[key].reshape(-1)) < 1e-5, key
    for key, y in stages.items():
        rows = rows_of(z[f"stage_coords_ts{y.stride[0]}"], y.coordinates)
        assert relative(y.features[rows], z[key]) < 1e-5, key
    after = to_minkowski(net.state_dict())
    for key in [k for k in z.files if k.startswith("bn_after1/")]:
        assert relative(after[key[10:]], z[key]) < 1e-5, key

    for key in [k for k in z.files if k.startswith("eval_bn/")]:
        after[key[8:]] = torch.from_numpy(z[key])
    net.load_state_dict(from_minkowski(after))
    net.eval()
    with torch.no_grad():
        assert relative(net(SparseTensor(features.detach(), x.coordinates)).features, z["out_eval"]) < 1e-5


def test_the_published_key_list_is_ours(shared):
    lines = shared("golden", "official_state_dict_keys.txt").read_text().splitlines()
    listed = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines[1:]}
    ours = to_minkowski(MinkUNet(64).state_dict())
    assert {k: str(tuple(v.shape)) for k, v in ours.items()} == listed
