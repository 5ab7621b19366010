"""On a CPU the engine needs torch alone: the same numbers where triton and torch-scatter cannot be imported."""

import subprocess
import sys

from tests.conftest import ROOT

STEP = """
import torch
from triton_kernels import BatchNorm, CylindricalGrid, SparseConv3d, SparseConvTranspose3d, SparseTensor, voxelize

torch.set_num_threads(1)
torch.manual_seed(0)
points = torch.randn(300, 3, requires_grad=True)
voxels = voxelize(points.detach(), torch.arange(300) % 2, CylindricalGrid(0.5, 20.0, 0.5), strides=(1, 2))
x = SparseTensor(points[voxels.first], voxels)
down, norm, up = SparseConv3d(3, 8, 2, stride=2), BatchNorm(8), SparseConvTranspose3d(8, 4, 2, stride=2)
y = up(norm(down(x), relu=True))
y.features.square().sum().backward()
gradients = [p.grad for layer in (down, norm, up) for p in layer.parameters()]
number = sum(float(t.detach().double().abs().sum()) for t in (y.features, norm.bn.running_var, points.grad, *gradients))
"""
BLOCKED = "import sys\nsys.modules |= dict.fromkeys(('triton', 'torch_scatter'))  # importing them raises ImportError\n"
ASKED = """
from triton_kernels import backend
try:
    with backend.forced("triton"):
        down(SparseTensor(torch.ones(1, 3), torch.zeros(1, 4, dtype=torch.int32)))
except ImportError as error:
    print(error)
"""


def test_torch_alone_gives_the_same_numbers_and_triton_is_named_if_it_is_asked_for():
    code = BLOCKED + STEP + "print(repr(number))" + ASKED
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, sentence = done.stdout.splitlines()
    exec(STEP, names := {})
    assert float(number) == names["number"] > 0
    assert sentence == "sparse convolution on a GPU needs Triton, which is not installed: pip install 'triton>=3.6,<4'."
