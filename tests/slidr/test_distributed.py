"""Two processes against one, in float64, where equality is more than likeness."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.frame import Frame, Pairs
from data.loading import make_loader
from slidr import config
from slidr.losses import infonce
from slidr.training import Run, distributed, fit, prepare, sgd
from triton_kernels import BatchNorm, CartesianGrid, SparseConv3d, SparseTensor, voxelize

FRAMES = 7  # batches of 4 and 3: one process has two frames of the last, the other one


class Clouds:
    """A Reader of frames of different sizes."""

    name, classes, intensity_offset = "clouds", ("ignored", "car"), 0.0
    ids = scenes = [f"cloud{i}" for i in range(FRAMES)]

    def __len__(self):
        return FRAMES

    def read(self, index: int, images: bool = True, labels: bool = True, shrink: int = 1) -> Frame:
        generator = torch.Generator().manual_seed(index)
        points = torch.rand(60 + 20 * index, 4, generator=generator).numpy()
        return Frame(id=self.ids[index], points=points, labels=None, cameras=[], pairs=Pairs.empty())


class Network(nn.Module):
    """Convolution, batch norm and convolution, and a layer on the other side."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = SparseConv3d(4, 6, 3), BatchNorm(6), SparseConv3d(6, 5, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, batch):
        v = voxelize(batch.points[:, :3], batch.batch_index, CartesianGrid(0.25))
        rows = batch.points[v.first].double()
        k = self.last(self.norm(self.first(SparseTensor(rows, v)), relu=True)).features
        return F.normalize(k, dim=1), F.normalize(self.head(rows), dim=1)


def train(folder: Path) -> None:
    """Train three epochs and write the parameters (the first process does)."""
    settings = config.validate(config.Pretrain, {"output": str(folder), "name": "run", "epochs": 3, "batch": 4})
    prepare(settings)
    network = Network().double()
    loader = make_loader(
        Clouds(),
        batch=settings.batch,
        augment=None,
        superpixels=None,
        images=False,
        labels=False,
        workers=0,
        seed=0,
        shuffle=True,
        rank=distributed.rank(),
        world=distributed.world(),
    )

    def loss_of(batch):
        k, q = network(batch)
        share, q = distributed.share(len(k)), distributed.gathered(q)
        return infonce(k, q, 0.07)[0] * share, {}

    run = Run("pretrain", settings)
    fit(run, settings, loader, sgd(settings, [{"params": list(network.parameters()), "lr": 0.5}]), loss_of, network)
    if run.first:
        torch.save(network.state_dict(), folder / "trained.pt")


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one(tmp_path):
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [*launcher, "-m", "tests.slidr.test_distributed", str(folder)],
            capture_output=True, text=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[processes] = torch.load(folder / "trained.pt", weights_only=True)
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_alone_everything_is_as_it_is():
    rows = torch.rand(3, 2)
    assert distributed.gathered(rows) is rows and distributed.total(rows) is rows
    assert distributed.first_says("me") == "me" and distributed.share(3) == 1.0
    with distributed.first_goes_first(), distributed.dead_processes_named():
        pass
    with pytest.raises(RuntimeError, match="gloo"), distributed.dead_processes_named():
        raise RuntimeError("gloo, but of whom?")


if __name__ == "__main__":
    train(Path(sys.argv[1]))


def test_processes_that_start_again_find_an_unused_part_of_the_store():
    """What an earlier start left in the store, whole or cut off, is heard by nobody."""
    store = torch.distributed.HashStore()

    def start(processes: int, seconds: float = 10) -> list[torch.distributed.Store]:
        store.set_timeout(timedelta(seconds=seconds))
        with ThreadPoolExecutor(3) as pool:
            return [part.result() for part in [pool.submit(distributed.unused, store, n, 3) for n in range(processes)]]

    for value in ("first", "second"):
        parts = start(3)
        assert not any(part.check(["address"]) for part in parts)
        parts[1].set("address", value)
        assert {part.get("address") for part in parts} == {value.encode()}
        with pytest.raises(TimeoutError, match=r"processes \[2\] of 3 have not come"):
            start(2, 0.2)  # the third one's question of before still stands
