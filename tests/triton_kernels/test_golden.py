"""Every layer and network of the original engine (MinkowskiEngine 0.5.4): outputs and gradients."""

import json
import zlib

import numpy as np
import pytest
import torch

from slidr.networks.minkunet import MinkUNet, from_minkowski, to_minkowski
from tests.conftest import SHARED
from tests.triton_kernels.conftest import listed
from triton_kernels import BatchNorm, CylindricalGrid, SparseConv3d, SparseConvTranspose3d, SparseTensor, voxelize
from triton_kernels.kernel_map import kernel_offsets

LAYERS = sorted(path.stem for path in SHARED.glob("golden/layers/*.npz")) or ["missing"]


def relative(a: torch.Tensor, b: np.ndarray) -> float:
    b = torch.as_tensor(b, dtype=torch.float64)
    return float((a.detach().double().cpu() - b).norm() / b.norm().clamp_min(1e-30))


def rows_of(wanted: np.ndarray, coordinates: torch.Tensor) -> list[int]:
    """The row in `coordinates` of each wanted coordinate; both must hold the same set."""
    row = {tuple(c): i for i, c in enumerate(coordinates.tolist())}
    assert len(row) == len(wanted)
    return [row[tuple(c)] for c in wanted.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(shared, name, dtype):
    check_layer(shared, name, dtype, torch.device("cpu"))


@pytest.mark.slow  # two minutes in the interpreter
@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_triton(shared, triton_device, name):
    check_layer(shared, name, torch.float32, triton_device)


def check_layer(shared, name, dtype, device):
    """Output, gradients and kernel map of one layer against its file."""
    z = np.load(shared("golden", "layers", f"{name}.npz"))
    meta = json.loads(str(z["meta"]))
    kind = SparseConvTranspose3d if meta["transposed"] else SparseConv3d
    layer = kind(5, 7, meta["kernel_size"], meta["stride"], meta["dilation"], meta["bias"]).to(device, dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(z["kernel"]).reshape(layer.weight.shape))
        if meta["bias"]:
            layer.bias.copy_(torch.from_numpy(z["bias"]).reshape(-1))
    features = torch.from_numpy(z["in_feats"]).to(device, dtype).requires_grad_()
    x = SparseTensor(features, torch.from_numpy(z["in_coords"]).to(device), meta["in_tensor_stride"])
    cached = meta["transposed"] and "nocache" not in name
    if cached:  # the level to return to
        x.cache.coordinates[tuple(meta["out_tensor_stride"])] = torch.from_numpy(z["out_coords"]).to(device)
    y = layer(x)
    assert list(y.stride) == meta["out_tensor_stride"]
    rows = rows_of(z["out_coords"], y.coordinates)
    grad_out = torch.zeros_like(y.features)
    grad_out[rows] = torch.from_numpy(z["grad_out"]).to(device, dtype)
    y.features.backward(grad_out)
    tolerance = 1e-6
    assert relative(y.features[rows], z["out_feats"]) < tolerance
    assert relative(features.grad, z["grad_in"]) < tolerance
    assert relative(layer.weight.grad.reshape(z["grad_kernel"].shape), z["grad_kernel"]) < tolerance
    if meta["bias"]:
        assert relative(layer.bias.grad, z["grad_bias"].reshape(-1)) < tolerance
    fine_stride = y.stride if meta["transposed"] else x.stride
    offsets = np.array(kernel_offsets(layer.kernel_size)) * layer.dilation * fine_stride
    assert np.array_equal(offsets, z["offsets"])
    if x.cache.maps:  # a plain matrix product needs none
        assert pairs_of(x, meta["transposed"], rows) == [tuple(p) for p in z["kmap"].tolist()]


def pairs_of(x: SparseTensor, transposed: bool, rows: list[int]) -> list[tuple[int, int, int]]:
    """The only kernel map of the cache as (k, input row, the file's output row), in the file's order."""
    (kernel_map,) = x.cache.maps.values()
    back = np.argsort(rows)  # our output row -> the file's
    pairs = [(k, c, back[f]) if transposed else (k, f, back[c]) for k, f, c in listed(kernel_map)]
    return sorted(pairs, key=lambda p: (p[0], p[2], p[1]))


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
    """A parameter of the full network, by the seeding rule in the golden files' README."""
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


def golden_network(z) -> MinkUNet:
    """The file's network with its weights, in float32."""
    meta = json.loads(str(z["meta"]))
    net = MinkUNet(
        meta["out_channels"],
        bn_momentum=meta["config"]["bn_momentum"],
        normalize=meta["config"]["normalize_features"],
        planes=tuple(meta["planes"]),
        stem=meta["init_dim"],
        stem_kernel=meta["config"]["kernel_size"],
    )
    theirs = to_minkowski(net.state_dict())
    for key, value in theirs.items():
        if f"sd/{key}" in z.files:
            theirs[key] = torch.from_numpy(z[f"sd/{key}"])
            assert theirs[key].shape == value.shape
        else:
            theirs[key] = seeded(key, tuple(value.shape), meta["weight_seed"])
    net.load_state_dict(from_minkowski(theirs))
    return net


def train_step(net: MinkUNet, z, dtype: torch.dtype, device: str | torch.device = "cpu"):
    """(output, gradient of the features, signs after every ReLU) of the file's forward and backward pass."""
    signs = []
    for name, module in net.named_modules():
        if isinstance(module, BatchNorm) and "downsample" not in name:  # all others end in a ReLU
            module.register_forward_hook(lambda m, i, y: signs.append(y.features > 0))
    features = torch.from_numpy(z["feats"]).to(device, dtype).requires_grad_()
    x = SparseTensor(features, torch.from_numpy(z["coords"]).to(device))
    out = net.to(device, dtype).train()(x).features
    (out * torch.from_numpy(z["grad_out"]).to(device)).sum().backward()
    return out.detach(), features.grad, signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["net_narrow_2k", "net_narrow_k5_norm_2k", "net_full_norm64_2k"])
def test_network(shared, name, dtype):
    z = np.load(shared("golden", f"{name}.npz"))
    net = golden_network(z)
    stages = {}
    for key in [k for k in z.files if k.startswith("stage/")]:
        net.get_submodule(key[6:]).register_forward_hook(lambda m, i, o, key=key: stages.update({key: o}))
    out, grad_features, signs = train_step(net, z, dtype)
    grads = to_minkowski({k: p.grad for k, p in net.named_parameters()})
    assert relative(out, z["out_train"]) < 1e-5
    assert abs(float((out * torch.from_numpy(z["grad_out"])).sum()) / float(z["loss"]) - 1) < 1e-5
    for key, y in stages.items():
        rows = rows_of(z[f"stage_coords_ts{y.stride[0]}"], y.coordinates)
        expected = z[key].clip(0) if key == "stage/bn0" else z[key]  # stored before its ReLU
        assert relative(y.features[rows], expected) < 1e-5, key
    after = to_minkowski(net.state_dict())
    for key in [k for k in z.files if k.startswith("bn_after1/")]:
        assert relative(after[key[10:]], z[key]) < 1e-5, key

    # A few of a million inputs of a ReLU lie within 1e-6 of zero. Their signs in float32 depend on the processor, and a
    # flip changes some gradients by 1e-3. In float64 no sign flips.
    tolerance = 1e-5
    if dtype == torch.float32:
        _, _, exact = train_step(golden_network(z), z, torch.float64)
        flipped = sum(int((a != b).sum()) for a, b in zip(signs, exact, strict=True))
        assert flipped <= 2
        tolerance = 1e-2 if flipped else 1e-5
    assert relative(grad_features, z["grad_feats"]) < tolerance
    assert set(grads) == set(z["gradstat_keys"].tolist())
    for i, key in enumerate(z["gradstat_keys"].tolist()):
        sample = grads[key].reshape(-1)[torch.from_numpy(z["gradstat_idx"][i])]
        assert abs(float(grads[key].double().norm()) / z["gradstat_l2"][i] - 1) < tolerance, key
        assert relative(sample, z["gradstat_val"][i]) < max(tolerance, 3e-5), key  # 64 of up to a million values
    for key in [k for k in z.files if k.startswith("grad/")]:
        assert relative(grads[key[5:]], z[key]) < tolerance, key

    for key in [k for k in z.files if k.startswith("eval_bn/")]:
        after[key[8:]] = torch.from_numpy(z[key])
    net.load_state_dict(from_minkowski(after))
    net.eval()
    with torch.no_grad():
        x = SparseTensor(torch.from_numpy(z["feats"]).to(dtype), torch.from_numpy(z["coords"]))
        assert relative(net(x).features, z["out_eval"]) < 1e-5


@pytest.mark.slow  # a minute in the interpreter
def test_narrow_network_in_triton(shared, triton_device):
    """Output and input gradient; a ReLU whose sign flips in float32 may move the gradient, as above."""
    z = np.load(shared("golden", "net_narrow_2k.npz"))
    out, grad, _ = train_step(golden_network(z), z, torch.float32, triton_device)
    assert relative(out, z["out_train"]) < 1e-5
    assert relative(grad, z["grad_feats"]) < 1e-2


def test_the_published_key_list_is_ours(shared):
    lines = shared("golden", "official_state_dict_keys.txt").read_text().splitlines()
    listed = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines[1:]}
    ours = to_minkowski(MinkUNet(64).state_dict())
    assert {k: str(tuple(v.shape)) for k, v in ours.items()} == listed
