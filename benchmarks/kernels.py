"""What do the Triton kernels become on real GPUs? Compiled ahead of time: no GPU is needed.

    python -m benchmarks.kernels --resources [--targets sm_80 sm_90 sm_100 gfx942] [--once] [--json FILE]

Compiles every kernel of the engine in every shipped shape, and prints registers, shared memory, spills, and what of the
hardware the machine code uses. Must not run under TRITON_INTERPRET=1: interpreted functions cannot be compiled.
"""

import argparse
import functools
import inspect
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slidr.networks.minkunet import MinkUNet
from triton_kernels import SparseConv3d, SparseConvTranspose3d
from triton_kernels.configurations import configuration
from triton_kernels.kernels import convolution, hash_table, kernel_map, normalization

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Job:
    """A kernel in one shipped shape: types of its arguments, values of its constants, launch options."""

    name: str
    kernel: object
    types: dict[str, str]
    constants: dict
    warps: int = 4
    stages: int = 3


@dataclass
class Compiled:
    """What one kernel became on one target: resources, and counts of instructions; None where the tools do not tell."""

    name: str
    target: str
    registers: int | None
    shared: int
    spills: int | None  # bytes of stack
    tensor_cores: int | None
    async_copies: int | None
    wgmma_from_registers: int | None
    narrow_rows: int  # column vectors of row addresses computed in 32 bits, which overflow beyond 2^31 elements


INT32 = """table ordered lists counts rows_in rows_out start coordinates strides slot_rows slot_numbers places marks
fine_of coarse_of pairs_fine pairs_coarse bits rank""".split()
INT64 = "slots first_rows inverse hits ends order".split()
VOXELS = (20_700, 11_500, 5_400, 2_450, 960)  # of a 32-beam scan at strides 1 to 16


def _job(name: str, kernel, constants: dict, warps: int = 4, stages: int = 3, **types: str) -> Job:
    """A job; arguments whose types are not given are int32 pointers where INT32 names them, int64 pointers, or ints."""
    known = dict.fromkeys(INT32, "*i32") | dict.fromkeys(INT64, "*i64") | types
    names = inspect.signature(kernel.fn).parameters
    constants = {n: v for n, v in constants.items() if n in names}
    return Job(name, kernel, {n: known.get(n, "i32") for n in names if n not in constants}, constants, warps, stages)


def layers() -> list[tuple[int, int, int, int]]:
    """(kernel volume, input channels, output channels, level it writes) of Res16UNet34C, each once, without 1x1x1."""
    found = set()
    for name, layer in MinkUNet(64).named_modules():
        if isinstance(layer, SparseConv3d | SparseConvTranspose3d) and len(layer.weight) > 1:
            # conv1p1s2 and block1.0.conv1 are on level 1; convtr4p16s2 writes what block5 reads
            level = int(re.search(r"\d", name)[0]) + name.startswith("convtr")
            found.add((*layer.weight.shape, level if level < 5 else 8 - level))
    return sorted(found)


@functools.cache  # once a process of the pool: the network is built for it
def jobs() -> list[Job]:
    """Every kernel in every shape that training Res16UNet34C launches, with 1 and with 16 scans."""
    k, n = kernel_map, normalization
    all_jobs = [
        _job("insert", hash_table._insert, {"BLOCK": hash_table.BLOCK}),
        _job("mark", hash_table._mark, {"BLOCK": hash_table.BLOCK}),
        _job("collect", hash_table._collect, {"BLOCK": hash_table.BLOCK}, ends="*i32", found="*i32"),
        *(_job(f"look_up mirrored={m}", k._look_up, {"MIRRORED": m, "BLOCK": k.BLOCK}) for m in (True, False)),
    ]
    for volume in (8, 27):
        constants = {"VOLUME": volume, "BLOCK": k.BLOCK}
        all_jobs.append(_job(f"rank {volume}", k._rank, constants))
        all_jobs.append(_job(f"pack_pairs {volume}", k._pack_pairs, constants))
        for height in (32, 64, 128):
            all_jobs.append(_job(f"tile {volume} x {height}", k._tile, {"VOLUME": volume, "BLOCK_M": height}))
    for dtype, pointer in POINTERS.items():
        short = pointer[1:]
        types = dict.fromkeys(("x", "residual", "out", "grad", "active", "grad_x", "grad_residual", "weight"), pointer)
        for volume, c_in, c_out, level in layers():
            for scans in (1, 16):
                all_jobs += _convolution_jobs(volume, c_in, c_out, VOXELS[level] * scans, dtype, types)
        block = {"BLOCK_M": n.BLOCK_M, "BLOCK_N": n.BLOCK_N, "CHANNELS": 96}
        types |= dict.fromkeys(("statistics", "line", "sums", "bias", "running_mean", "running_variance"), "*fp32")
        types["parts"] = "*fp64"
        all_jobs.append(_job(f"statistics {short}", n._statistics_kernel, block, **types))
        for residual in (False, True):
            switches = block | {"RELU": True, "FROM_OUTPUT": residual, "RESIDUAL": residual}
            for kernel in (n._apply_kernel, n._sums_kernel, n._grad_kernel):
                name = f"{kernel.__name__.strip('_').removesuffix('_kernel')} residual={residual} {short}"
                all_jobs.append(_job(name, kernel, switches, **types))
    block = {"CHANNELS": 96} | n.FINISH
    all_jobs.append(_job("finish_sums", n._finish_sums_kernel, block, **types))
    types |= {"batches": "*i64", "momentum": "fp32", "eps": "fp32", "weight": "*fp32"}
    all_jobs.append(_job("finish_statistics", n._finish_statistics_kernel, block, **types))
    unique = {(j.kernel, *map(str, (j.types, j.constants, j.warps, j.stages))): j for j in all_jobs[::-1]}
    return list(unique.values())[::-1]


def _convolution_jobs(volume: int, c_in: int, c_out: int, rows: int, dtype: torch.dtype, types: dict) -> list[Job]:
    """Forward, input gradient and weight gradient of a layer that writes `rows` rows."""
    cpu, short = torch.device("cpu"), types["x"][1:]
    height = kernel_map.tile_height(rows)
    common = {"VOLUME": volume, "PRECISION": "ieee", "AS_FLOAT": False, "BLOCK_M": height}
    found = []
    for way, a, b, strides, mirror in (
        ("forward", c_in, c_out, (c_out, 1), False),
        ("backward", c_out, c_in, (1, c_out), volume == 27),
    ):
        c = configuration("convolve", a, b, dtype, rows, cpu)
        constants = common | {
            "C_IN": a, "C_OUT": b, "STRIDE_IN": strides[0], "STRIDE_OUT": strides[1], "MIRROR": mirror,
            "BLOCK_N": c.block_n, "BLOCK_K": c.block_k, "SPLITS": c.splits,
        }  # fmt: skip
        name = f"convolve {way} {volume} {c_in}x{c_out} {short} tile {height}"
        out = types["out"] if c.splits == 1 else "*fp32"
        found.append(_job(name, convolution._convolve, constants, c.warps, c.stages, **types | {"out": out}))
    c = configuration("weight_gradient", c_in, c_out, dtype, rows, cpu)
    constants = common | {
        "C_IN": c_in, "C_OUT": c_out, "BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "BLOCK_K": c.block_k,
        "SPLITS": c.splits,
    }  # fmt: skip
    name = f"weight_gradient {volume} {c_in}x{c_out} {short} splits {c.splits}"
    found.append(_job(name, convolution._weight_gradient, constants, c.warps, c.stages, **types | {"out": "*fp32"}))
    return found


def compile_job(job: Job, target: str) -> Compiled:
    """Compile one kernel for one target, and read what it became."""
    names = list(inspect.signature(job.kernel.fn).parameters)
    signature = {n: job.types.get(n, "constexpr") for n in names}
    # as the launcher finds them: pointers of torch's allocator are aligned
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n, t in job.types.items() if t.startswith("*")}
    source = ASTSource(job.kernel, signature=signature, constexprs=job.constants, attrs=aligned)
    options = {"num_warps": job.warps, "num_stages": job.stages if target != "gfx942" else 2}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    row = Compiled(job.name, target, None, compiled.metadata.shared, None, None, None, None, 0)
    gathered = job.constants.get("BLOCK_K" if job.name.startswith("weight_gradient") else "BLOCK_M")
    narrow = rf"tt\.addptr .*tensor<{gathered}x1x!tt\.ptr<\w+>>, tensor<{gathered}x1xi32>"
    row.narrow_rows = len(re.findall(narrow, compiled.asm["ttir"]))
    if "cubin" not in compiled.asm:
        return row
    ptx = compiled.asm["ptx"]
    row.tensor_cores = len(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", ptx))
    row.async_copies = len(re.findall(r"cp\.async\.c[ag]", ptx))
    # wgmma's left operand stands after the accumulators: a descriptor of shared memory, or a list of registers
    row.wgmma_from_registers = len(re.findall(r"wgmma\.mma_async[^;]*\}, *\{", ptx))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    row.registers, row.spills = (int(re.search(rf"{name}:(\d+)", done.stdout)[1]) for name in ("REG", "STACK"))
    return row


def _compile_nth(i: int, target: str) -> Compiled:
    """`compile_job` in a process of a pool, which cannot be sent a kernel."""
    return compile_job(jobs()[i], target)


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", action="store_true", help="print the table")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--only", default="", help="pattern in a kernel's name")
    parser.add_argument("--once", action="store_true", help="each kernel and layer in its largest blocks only")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    rows = []
    widths = {"registers": 9, "shared": 7, "spills": 6, "tensor_cores": 12, "async_copies": 12}
    print(f"{'kernel':52} {'target':7} {' '.join(f'{name:>{width}}' for name, width in widths.items())}")
    chosen = {i: j.name for i, j in enumerate(jobs()) if re.search(options.only, j.name)}
    if options.once:  # the largest come last
        chosen = {re.sub(r" (tile|splits) \d+$", "", name): i for i, name in chosen.items()}.values()
    wanted = [(i, target) for i in chosen for target in options.targets]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(_compile_nth, *zip(*wanted, strict=True)) if wanted else ():
            rows.append(asdict(row))
            cells = {name: getattr(row, name) for name in widths}
            text = " ".join(f"{'–' if cells[name] is None else cells[name]:>{width}}" for name, width in widths.items())
            print(f"{row.name:52} {row.target:7} {text}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    sys.exit(main())
