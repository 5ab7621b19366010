"""Every benchmark, on little data: it runs, prints its table and writes its row."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

RUNS = {  # name of the row -> module and words
    "detection": "detection --root {world} --seeds 1 --passes 1 --pct 50 --steps 1",
    "detection_overfit": "detection --overfit {world}/nuscenes --epochs 1",
    "determinism": "determinism --runs 1 --epochs 1 --threads 1",
    "downstream": "downstream --kitti {world}/kitti --nuscenes {world}/nuscenes --steps 1",
    "engine_cpu": "engine_cpu --scans {scans} --repeats 1",
    "engine_gpu_smoke": "engine_gpu --scans {scans} --batches 1 --types bf16 --no-tests --no-tune --smoke",
    "engine_scaling_cpu": "engine_scaling --largest 4096",
    "features": "features --root {world}/nuscenes --scans 1",
    "launches": "launches --scans {scans} --repeats 1",
    "loader": "loader --root {world}/nuscenes --frames 4 --batch 1",
    "method_costs": "method_costs --root {world} --methods scalr --steps 1",
    "methods": "methods --root {world} --seeds 1 --passes 1 --methods slidr+temperature=0.1",
    "objective_cpu": "objective --frames 1 --repeats 1",
    "pointnet2": "pointnet2 --clouds 2 --points 256 --repeats 1",
    "real_frames": "real_frames --root {world}/kitti --teacher_weights random --seeds 1 --epochs 1 "
    "--methods scalr+lr=1",
    "real_frames_overfit": "real_frames --root {world}/kitti --overfit --overfit_pct 50 --overfit_epochs 1",
    "superpixels": "superpixels --root {world}/nuscenes --images 1",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(name, tiny_world, tmp_path):
    rng = np.random.default_rng(0)
    coordinates = np.unique(rng.integers((0, -8, -8, -8), (2, 8, 8, 8), (800, 4)), axis=0)
    np.savez(tmp_path / "scans.npz", coords=coordinates, feats=rng.random((len(coordinates), 1)))
    module, *words = RUNS[name].format(world=tiny_world, scans=tmp_path / "scans.npz").split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words],
        capture_output=True, text=True, cwd=tmp_path, timeout=500,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        | {"TRITON_INTERPRET": "0" if module == "launches" else "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"written: benchmarks/results/{name}.json" in done.stdout
    row = json.loads((tmp_path / f"benchmarks/results/{name}.json").read_text())
    assert name.startswith(row["benchmark"]) and row["torch"] and row["device"]
