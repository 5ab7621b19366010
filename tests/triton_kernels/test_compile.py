"""Every kernel compiles for real GPUs, without one, in a process whose kernels are not defined for the interpreter."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FEW = "|".join(
    (
        "^(insert|mark|collect|pack_pairs 27|statistics bf16)$",
        "^look_up|^rank 27|^tile 8 x 64|residual=True bf16",
        "^convolve .* 27 (96x96|1x32|32x1) (bf16|fp32) tile (64|128)",
        "^weight_gradient 27 96x96 (bf16|fp32)",
    )
)


def compiling(*arguments: str) -> list[str]:
    """The words that Python prints when run with these arguments, in a process in which Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def compiled(tmp_path, pattern: str, *targets: str) -> list[dict]:
    """Rows of `python -m benchmarks.kernels` for the kernels whose names match the pattern."""
    file = tmp_path / "kernels.json"
    compiling("-m", "benchmarks.kernels", "--only", pattern, "--json", str(file), "--targets", *targets)
    return json.loads(file.read_text())


def check(rows: list[dict]) -> None:
    """Check that convolutions use what makes an H100 fast, and that no kernel spills registers."""
    for row in rows:
        if row["target"] == "gfx942":
            continue
        assert row["spills"] == 0, row
        if row["target"] == "sm_90" and re.search("convolve|weight_gradient", row["name"]):
            assert row["async_copies"] > 0, row
            assert row["tensor_cores"] > 0 or "fp32" in row["name"], row  # float32 is multiplied exactly
            assert row["wgmma_from_registers"] == 0, row
        assert row["shared"] <= 163 * 1024, row  # of sm_80; the later ones have more


def test_some_kernels_compile_for_every_target(tmp_path):
    rows = compiled(tmp_path, FEW, "sm_90")
    assert len(rows) > 20
    check(rows)
    large = [row for row in rows if re.search("convolve.*tile 128|weight_gradient", row["name"])]
    assert len(large) > 5 and not any(row["narrow_rows"] for row in large)  # features beyond 2^31 elements
    others = compiled(tmp_path, "^(insert|convolve forward 27 96x96 bf16 tile 64)", "sm_80", "sm_100", "gfx942")
    assert {row["target"] for row in others} == {"sm_80", "sm_100", "gfx942"}
    check(others)


@pytest.mark.slow  # minutes
def test_every_shipped_kernel_compiles(tmp_path):
    rows = compiled(tmp_path, "^(?!.*fp16)", "sm_90")  # float16 has the shapes of bfloat16
    assert len(rows) > 220
    check(rows)
    rows = compiled(tmp_path, "^(?!.*(fp16|fp32))|27 96x96 fp16", "sm_80", "sm_100", "gfx942", "--once")
    assert len(rows) > 220
    check(rows)


TUNING = """
import torch, triton
from benchmarks import engine_gpu, launches
from triton_kernels import SparseConv3d, SparseConvTranspose3d
triton.runtime.driver.set_active(launches.NoDevice())
for kind, size, operation, use in (
    (SparseConv3d, 3, "weight gradient", "weight_gradient"), (SparseConvTranspose3d, 2, "input gradient", "convolve")
):
    found = engine_gpu.candidates(use, 32, 32, torch.bfloat16, 4096)[:2]
    found.append(found[0]._replace(block_m=256, block_n=256, block_k=128, stages=8))  # more shared memory than there is
    print(engine_gpu._precompile((kind, (32, 32), size, operation, 64, torch.bfloat16, found, torch.device("cpu"))))
"""


LAUNCHES = """
import torch, triton
from benchmarks import launches
from triton_kernels import kernels
from triton_kernels.kernels.normalization import _statistics_kernel as kernel

calls = []

class Driver(launches.NoDevice):
    launcher_cls = staticmethod(lambda source, metadata: lambda *arguments: calls.append(arguments))

triton.runtime.driver.set_active(Driver())
x, parts = torch.zeros(64, 16), torch.zeros(2, 2, 16, dtype=torch.float64)
tile = dict(CHANNELS=16, BLOCK_M=32, BLOCK_N=16)

def launch(x, n=64):
    kernels.launch(kernel, (2, 1, 1), x, parts, n, 32, 2, warps=4, stages=3, **tile)
    return len(kernels._compiled)

launch(x)  # as Triton launches
launch(x)  # as we do
first, second = ([a.data_ptr() if isinstance(a, torch.Tensor) else a for a in call] for call in calls)
assert first[:6] + first[9:] == second[:6] + second[9:], (first, second)  # in between: hooks, which we do not call
print(launch(x, 48), launch(x.view(-1)[1:33].view(2, 16)), launch(x.bfloat16()), launch(x, 2**31), len(calls))
"""


def test_kernels_are_launched_as_triton_launches_them_and_found_again_by_what_it_distinguishes():
    assert compiling("-c", LAUNCHES) == ["1", "2", "3", "4", "6"]


@pytest.mark.slow
def test_tuning_compiles_its_candidates_and_leaves_out_what_does_not_fit():
    assert compiling("-c", TUNING) == ["2", "2"]
