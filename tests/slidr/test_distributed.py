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

from data.frame import Frame, Needs
from data.loading import make_loader
from data.samples.single import Single
from slidr import config
from slidr.losses import gathered_infonce, infonce
from slidr.training import Learner, Run, Step, distributed, fit, prepare
from triton_kernels import BatchNorm, CartesianGrid, SparseConv3d, SparseTensor, voxelize

FRAMES = 7  # batches of 4 and 3: one process has two frames of the last, the other one
ROOT = Path(__file__).parents[2]


class Clouds:
    """A Reader of frames of different sizes."""

    dataset, intensity_offset, intensity_scale = None, 0.0, 1.0
    ids = scenes = [f"cloud{i}" for i in range(FRAMES)]

    def __len__(self):
        return FRAMES

    def read(self, index: int, needs: Needs, rng=None) -> Frame:
        generator = torch.Generator().manual_seed(index)
        return Frame(id=self.ids[index], points=torch.rand(60 + 20 * index, 4, generator=generator).numpy())


class Network(Learner):
    """Convolution, batch norm and convolution, and a layer on the other side."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = SparseConv3d(4, 6, 3), BatchNorm(6), SparseConv3d(6, 5, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, batch) -> Step:
        v = voxelize(batch.points[:, :3], batch.batch_index, CartesianGrid(0.25))
        rows = batch.points[v.first].double()
        k = self.last(self.norm(self.first(SparseTensor(rows, v)), relu=True)).features
        return Step(gathered_infonce(F.normalize(k, dim=1), F.normalize(self.head(rows), dim=1), 0.07)[0])


def train(folder: Path) -> None:
    """Train three epochs and write the parameters (the first process does)."""
    settings = config.validate(
        config.Linprobe, {"output": str(folder), "name": "run", "epochs": 3, "batch": 4, "lr": 0.5}
    )
    prepare(settings)
    network = Network().double()
    loader = make_loader(
        Single(Clouds(), Needs()),
        batch=settings.batch,
        workers=0,
        seed=0,
        shuffle=True,
        rank=distributed.rank(),
        world=distributed.world(),
    )
    run = Run("linprobe", settings)
    fit(run, settings, network, loader)
    if run.first:
        torch.save(network.state_dict(), folder / "trained.pt")


def gather(folder: Path) -> None:
    """Rows of two processes and their gradients; what one process would have is computed beside it."""
    prepare(config.validate(config.Linprobe, {}))
    torch.manual_seed(7)
    all_k, all_q = (F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    expected, accuracy = infonce(all_k, all_q, 0.07)
    expected.backward()
    rank = distributed.rank()
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    k, q = (rows.detach()[mine].clone().requires_grad_() for rows in (all_k, all_q))
    together, first = distributed.gathered(q)
    assert torch.equal(together, all_q) and first == mine.start  # in the order of ranks, in all of them
    loss, own_accuracy = gathered_infonce(k, q, 0.07)
    loss.backward()
    mean = distributed.total(loss.detach()) / 2
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-12, atol=1e-12)
    # DDP divides by the number of processes what backward adds up over them
    torch.testing.assert_close(q.grad / 2, all_q.grad[mine], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(k.grad / 2, all_k.grad[mine], rtol=1e-10, atol=1e-12)
    nearest = (all_k[mine] @ all_q.T).argmax(1) == torch.arange(mine.start, mine.stop)
    assert float(own_accuracy) == pytest.approx(float(nearest.float().mean()))
    assert distributed.objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    (folder / f"rank{rank}").touch()


def torchrun(processes: int, what: str, folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, "-m", "tests.slidr.test_distributed", what, str(folder)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one(tmp_path):
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        torchrun(processes, "train", folder)
        found[processes] = torch.load(folder / "trained.pt", weights_only=True)
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_gathered_rows_have_the_loss_and_the_gradients_of_one_batch(tmp_path):
    torchrun(2, "gather", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rank0", "rank1"}


def test_alone_everything_is_as_it_is():
    rows = torch.rand(3, 2)
    assert distributed.gathered(rows)[0] is rows and distributed.total(rows) is rows
    assert distributed.objects("me") == ["me"] and distributed.from_first("me") == "me" and distributed.share(3) == 1.0
    with distributed.first_goes_first(), distributed.dead_processes_named():
        pass
    with pytest.raises(RuntimeError, match="gloo"), distributed.dead_processes_named():
        raise RuntimeError("gloo, but of whom?")


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


if __name__ == "__main__":
    {"train": train, "gather": gather}[sys.argv[1]](Path(sys.argv[2]))
