"""What does pooling without the full-resolution feature map save, in memory and time?

    python -m benchmarks.objective [--frames 16] [--device cuda] [--repeats 3]

The objective of one training step of the published recipe, forward and backward: from the head's output (six images
a frame, 64 channels, 56 x 104 cells) and the points' features to InfoNCE, at 224 x 416 pixels with 132 superpixels and
3,700 pairs an image. Before: upsample, normalise, then take means, as the published code does. After: slidr.pooling.
Both in one run, on the same random features; prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import record
from data.frame import Pairs
from slidr.losses import infonce
from slidr.pooling import POOLING_BACKEND, mean_by_id, pool_superpixels

CHANNELS, CELLS, SIZE, CAMERAS, PAIRS, POINTS = 64, (56, 104), (224, 416), 6, 3700, 30_000


def full_map(
    points: torch.Tensor, features: torch.Tensor, superpixels: torch.Tensor, pairs: Pairs
) -> tuple[torch.Tensor, torch.Tensor]:
    """`slidr.pooling.pool_superpixels` by way of the full-resolution map."""
    pixels = F.normalize(F.interpolate(features, size=SIZE, mode="bilinear", align_corners=True), dim=1)
    n = int(superpixels.max()) + 1
    names = superpixels + n * torch.arange(len(superpixels), device=points.device)[:, None, None]
    q = mean_by_id(pixels.movedim(1, -1).reshape(-1, CHANNELS), names.flatten(), n * len(names))
    occupied, row = torch.unique(names[pairs.camera, pairs.row, pairs.column], return_inverse=True)
    return mean_by_id(points[pairs.point], row, len(occupied)), q[occupied]


def batch(frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Pairs]:
    """Random point features and head outputs (both to be differentiated), superpixels 20 x 35 pixels large, pairs."""
    torch.manual_seed(0)
    images = CAMERAS * frames
    points = F.normalize(torch.randn(POINTS * frames, CHANNELS), dim=1).to(device).requires_grad_()
    features = torch.randn(images, CHANNELS, *CELLS).to(device).requires_grad_()
    row, column = torch.arange(SIZE[0]) // 20, torch.arange(SIZE[1]) // 35
    superpixels = (12 * row[:, None] + column).expand(images, *SIZE).contiguous()
    camera = torch.arange(images).repeat_interleave(PAIRS)
    point, y, x = (torch.randint(0, high, (len(camera),)) for high in (len(points), *SIZE))
    return points, features, superpixels.to(device), Pairs(*(v.to(device) for v in (point, camera, y, x)))


def measure(pool: Callable, inputs: tuple, repeats: int) -> dict:
    """Best time of `repeats` steps, the most memory taken beyond the inputs', the loss and the features' gradient."""
    points, features, superpixels, pairs = inputs
    cuda = features.is_cuda
    seconds, start = [], _memory(cuda)
    for _ in range(repeats):
        began = time.perf_counter()
        loss, _ = infonce(*pool(points, features, superpixels, pairs), 0.07)
        _, gradient = torch.autograd.grad(loss, (points, features))
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "peak_gib": (peak - start) / 2**30, "loss": loss.item(), "gradient": gradient}


def _memory(cuda: bool) -> int:
    """Bytes taken now; a GPU's peak is counted from here on."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    inputs = batch(options.frames, device)
    # in this order: on a CPU the peak is the process's, and the second is to be the higher one
    after, before = (measure(pool, inputs, options.repeats) for pool in (pool_superpixels, full_map))
    a, b = after.pop("gradient"), before.pop("gradient")
    row = {
        "pooling": POOLING_BACKEND,
        "frames": options.frames,
        "full_map": before,
        "fused": after,
        "loss_difference": abs(after["loss"] - before["loss"]),
        "gradient_difference": float((a - b).norm() / b.norm()),
    }
    machine = record.device_name(device)
    print(f"objective of {options.frames} frames, forward + backward, on {machine}, {POOLING_BACKEND}\n")
    print("                     peak GiB   seconds")
    for name, r in (("full-resolution map", before), ("fused", after)):
        print(f"{name:<20} {r['peak_gib']:8.2f} {r['seconds']:9.3f}")
    print(f"\nloss {row['loss_difference']:.1e} apart, gradients {row['gradient_difference']:.1e} (relative)")
    record.write(f"objective_{device.type}", row, device)


if __name__ == "__main__":
    main()
