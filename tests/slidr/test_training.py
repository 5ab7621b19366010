"""The loop: schedule, modes, a loss that is no number; and the folder of a run."""

import copy
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from data.files import InputError
from data.frame import Batch, Pairs
from data.workers import end_workers, leave_signals, results
from slidr import config
from slidr.tensor_files import packed
from slidr.training import Finished, Learner, Run, Step, Stopped, fit, prepare, rate_factor
from slidr.training.checkpoint import Checkpoints


def batch() -> Batch:
    none = torch.zeros(0)
    return Batch(none, none, none, None, None, None, Pairs(none, none, none, none), ids=["a-frame"])


class Loader:
    """As `data.loading.Loader`: `n` steps an epoch, of one frame each."""

    def __init__(self, n: int):
        self.n, self.items, self.epochs, self.unread, self.redrawn = n, n, [], set(), 0

    def __len__(self) -> int:
        return self.n

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epochs.append(epoch)
        self.skip = skip

    def __iter__(self):
        return iter([batch() for _ in range(self.n)][self.skip :])


@pytest.fixture
def settings(tmp_path):
    values = {"output": str(tmp_path), "name": "run", "epochs": 4, "validate_every": 2}
    return config.validate(config.Linprobe, values)


class Network(Learner):
    """One layer and a batch norm on inputs that depend on the step's seed alone. `act(step)` happens in a step."""

    best = ("val_mIoU", "max")

    def __init__(self, spoil=(), act=None):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.spoil, self.act, self.calls, self.written = spoil, act, 0, []

    def forward(self, batch) -> Step:
        self.calls += 1
        if self.act:
            self.act(self.calls)
        scale = float("nan") if self.calls in self.spoil else 1.0
        out = self.norm(self.layer(scale * torch.rand(8, 2)))
        return Step(out.square().mul(torch.rand(8, 2)).sum(), {"extra": out.detach().mean(), "pairs": 22430})

    def write_model(self, path):
        self.written.append(path.name)


def test_the_learning_rate_follows_the_originals_schedule(settings, shared):
    stored = json.loads(shared("golden", "step", "E_lr_schedules.json").read_text())
    for name, epochs in {"pretrain_lr0.5_50epochs": 50, "finetune_head2.0_trunk0.02_100epochs": 100}.items():
        asked = changed(settings, epochs=epochs)
        for epoch, rates in enumerate(stored[name][:epochs]):
            for step in (7 * epoch, 7 * epoch + 6):  # stepped per epoch
                found = [base * rate_factor(asked, step, 7) for base in stored[name][0]]
                assert rates == pytest.approx(found, abs=1e-7)


def test_fit_trains_logs_and_validates(settings):
    seen, validations = [], []

    class Watched(Network):
        def parameter_groups(self):
            self.group = super().parameter_groups()[0]
            return [self.group]

        def after_step(self, step, progress):
            seen.append((self.training, progress))

    learner, loader, run = Watched(), Loader(5), Run("linprobe", settings)

    def validate(epoch):
        learner.eval()
        validations.append(epoch)
        return {"val_mIoU": 50.0 - epoch, "val_iou/car": 1.0}

    fit(run, settings, learner, loader, validate)
    run.finish("# done\n")
    assert seen == [(True, (step + 1) / 20) for step in range(20)]
    assert loader.epochs == [0, 1, 2, 3] and validations == [2, 4]
    assert learner.written == ["best.pt"]  # the second one is worse
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert trained[-1]["loss"] < trained[0]["loss"] and rows[-1]["val_mIoU"] == 46.0 and trained[0]["pairs"] == 22430
    assert [row["lr"] for row in trained] == pytest.approx(
        [0.05 * rate_factor(settings, row["step"] - 1, 5) for row in trained]
    )
    assert (run.folder / "report.md").read_text() == "# done\n"


def test_what_a_person_reads_while_it_trains(settings, capsys):
    """Loss, learning rate, the learner's own numbers, speed in scans and images, waiting, time left, validation."""

    class WithImages(Loader):
        def __iter__(self):
            return iter([replace(batch(), images=torch.zeros(6, 3, 1, 1)) for _ in range(self.n)])

    run = Run("x", settings)
    fit(run, settings, Network(), WithImages(5), lambda _: {"val_mIoU": 4.56789, "val_iou/car": 1.0})
    row = next(row for row in run.rows if row["step"] == 10)
    assert row["images_per_second"] == pytest.approx(6 * row["scans_per_second"])
    assert 0 <= row["waiting_for_data"] <= 1 and row["lr"] == 0.05 * rate_factor(settings, 9, 5)
    last, validated = capsys.readouterr().out.splitlines()[-2:]
    assert "epoch 4/4  step 20/20  loss " in last and "pairs 22,430  " in last and "00:00 left" in last
    assert validated == "x: epoch 4/4  val mIoU 4.568"


def test_lines_come_in_time_however_long_a_step_takes(settings, capsys, monkeypatch):
    monkeypatch.setattr("slidr.training.loop.LINE_EVERY", 0)
    fit(Run("x", settings), settings, Network(), Loader(2))
    lines = [line for line in capsys.readouterr().out.splitlines() if "step " in line]
    assert len(lines) == 8 and len(set(lines)) == 8


def test_lines_come_within_a_step_of_minutes(settings, capsys, monkeypatch):
    monkeypatch.setattr("slidr.training.loop.LINE_EVERY", 0.4)
    fit(Run("x", settings), changed(settings, epochs=1), Network(act=lambda step: time.sleep(2.5)), Loader(1))
    said = capsys.readouterr().out
    assert "x: after step 0 of 1, still at work" in said and "still at work" not in said.split("step 1/1")[1]


def test_the_loop_waits_once_a_step(settings, monkeypatch):
    """Whatever reads a number off the device is counted; the loop's one reading is `tolist`."""
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, original=original, name=name):
            if self.requires_grad or self.grad_fn is not None or self.dtype == torch.float64:
                waits.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    monkeypatch.setattr("slidr.training.loop.sync_status", lambda loss, norm, stop: (loss, False, False, False))
    monkeypatch.setattr("slidr.training.loop._require_finite", lambda learner, step: None)
    fit(Run("x", settings), settings, Network(), Loader(25))
    assert waits == ["tolist"] * 100


def train(settings, network=None, steps=3, spoil=(), act=None, validate=None):
    """A run of `steps` an epoch; (run, network). Steps are counted over the parts of a run."""
    run = Run("linprobe", settings)
    content = Checkpoints(run.folder / "checkpoints", 1).newest()
    network = network or Network()
    network.spoil, network.act = spoil, act
    network.calls = content["step"] if content and run.goes_on else 0
    fit(run, settings, network, Loader(steps), validate)
    return run, network


def changed(settings, **values):
    return config.validate(type(settings), settings.model_dump() | values)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.rows if "loss" in row]


# Steps whose loss is no number


def test_a_bad_step_is_left_out_whole(settings, capsys):
    """Weights and the running statistics of batch norm are as if there had been no such step."""
    network = Network()
    before = copy.deepcopy(network)
    run, _ = train(changed(settings, epochs=1), network, steps=1, spoil=(1,))
    assert_same(network, before)
    said = capsys.readouterr().err
    assert "the loss of step 0 is nan, the norm of its gradient nan (frames a-frame); it is left out, and kept" in said
    content = torch.load(run.folder / "nonfinite-000000000.pt", weights_only=True)
    assert content["ids"] == ["a-frame"] and content["step"] == 0 and content["bad_steps"] == 1
    run, network = train(changed(settings, name="more"), spoil=(2, 5, 9))
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert len([f for f in run.folder.iterdir() if f.name.startswith("nonfinite")]) == 3


def test_too_many_bad_steps_stop_the_run(settings):
    with pytest.raises(
        InputError, match=r"the loss of step 3 is nan, .* \(frames a-frame\), bad step number 3; .*--replay .*pt"
    ):
        train(changed(settings, max_bad_steps=2), spoil=(1, 2, 4))


def test_weights_that_are_no_numbers_never_reach_a_checkpoint(settings):
    network = Network()

    def overflow(step):
        if step == 2:
            network.layer.bias.data[0] = torch.inf

    with pytest.raises(InputError, match="after step 2 the weights `layer.bias` are no longer finite"):
        train(changed(settings, checkpoint_minutes=0), network, act=overflow, spoil=(2,))
    (checkpoint,) = (settings.output / "linprobe" / "run" / "checkpoints").iterdir()
    assert checkpoint.name.startswith("step-000000001-")


# Runs that are cut off


class Cut(Exception):
    pass


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(settings, cut):
    settings = changed(settings, checkpoint_minutes=0)
    whole, expected = train(changed(settings, name="whole"), validate=lambda epoch: {"val_mIoU": 1 / epoch})

    def act(step):
        if step == cut:
            raise Cut

    with pytest.raises(Cut):
        train(settings, act=act)
    torch.rand(cut)  # the state of the generators does not matter
    run, network = train(changed(settings, resume=True), validate=lambda epoch: {"val_mIoU": 1 / epoch})
    assert run.goes_on
    assert_same(network, expected)
    kept = {"step", "epoch", "loss", "lr"}
    rows = [{k: v for k, v in row.items() if k in kept} for row in run.rows if "loss" in row]
    assert rows == [{k: v for k, v in row.items() if k in kept} for row in whole.rows if "loss" in row]
    assert rows == [
        {k: v for k, v in json.loads(line).items() if k in kept}
        for line in (run.folder / "metrics.jsonl").read_text().splitlines()
        if "loss" in line
    ]


def test_a_run_without_checkpoint_begins_again(settings, capsys):
    def act(step):
        raise Cut

    with pytest.raises(Cut):
        train(settings, act=act)
    run, network = train(changed(settings, resume=True))
    _, expected = train(changed(settings, name="whole"))
    assert_same(network, expected)
    assert "goes on after step 0 of 12" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_stops_the_run_after_its_step(settings, name):
    def act(step):
        if step == 5:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(Stopped, match=f"stopped by {name} after step 5 of 12; .*--resume --name run"):
        train(settings, act=act)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as before
    run, network = train(changed(settings, resume=True))
    _, expected = train(changed(settings, name="whole"))
    assert_same(network, expected)


def test_a_second_ctrl_c_ends_at_once(settings):
    def act(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings, act=act)


def test_settings_that_decide_must_be_those_of_the_run(settings):
    with pytest.raises(Cut):
        train(settings, act=lambda step: (_ for _ in ()).throw(Cut))
    with pytest.raises(InputError, match="holds a run with `epochs` 4, this one has 5"):
        train(changed(settings, resume=True, epochs=5))
    train(changed(settings, resume=True, workers=0, checkpoint_minutes=1))


def test_a_finished_run_and_one_that_was_cut_off_are_not_written_over(settings, capsys):
    with pytest.raises(Cut):
        train(settings, act=lambda step: (_ for _ in ()).throw(Cut))
    with pytest.raises(InputError, match="holds a run, which was cut off: --resume goes on with it"):
        Run("linprobe", settings)
    Run("linprobe", changed(settings, name=None))
    assert "run has the same settings and was cut off: --resume goes on with it" in capsys.readouterr().out
    run, _ = train(changed(settings, name=None, resume=True))
    assert run.folder.name != "run"  # the newest of the two
    run.finish("done")
    with pytest.raises(InputError, match="already holds a finished run"):
        Run("linprobe", changed(settings, name=run.folder.name))
    with pytest.raises(Finished, match="nothing is left to do"):
        Run("linprobe", changed(settings, name=run.folder.name, resume=True))
    with pytest.raises(InputError, match="`lr` 0.05, this one has 0.1"):
        Run("linprobe", changed(settings, name=run.folder.name, resume=True, lr=0.1))


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused while the first one lives; the loader's workers, forked from it, may live on."""
    values = {"output": str(tmp_path), "name": "run", "resume": True}
    lines = [
        "import os, time; from slidr import config; from slidr.training import Run",
        f"run = Run('linprobe', config.validate(config.Linprobe, {values}))",
        "worker = os.fork()",
        "worker and print(worker, flush=True)",
        "time.sleep(60)",
    ]
    first = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    worker = int(first.stdout.readline())
    settings = config.validate(config.Linprobe, values)
    with pytest.raises(InputError, match=f"is being written by another run .process {first.pid} on "):
        Run("linprobe", settings)
    first.kill()
    first.wait()
    assert Run("linprobe", settings).goes_on
    os.kill(worker, signal.SIGKILL)


# Checkpoints


def test_checkpoints_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save({"step": step}, best=step in (1, 3))
    steps = sorted((int(f.name[5:14]), "best" in f.name) for f in tmp_path.iterdir())
    assert steps == [(3, True), (5, False), (6, False)] and checkpoints.newest() == {"step": 6}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    paths = [checkpoints.save({"step": step, "values": torch.arange(1000)}) for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    flipped = bytearray(paths[1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    paths[1].write_bytes(flipped)
    assert checkpoints.newest()["step"] == 1
    said = capsys.readouterr().err
    assert all(f"{path} is damaged and left out" in said for path in paths[1:])
    paths[0].write_bytes(b"")
    assert checkpoints.newest() is None and Checkpoints(tmp_path / "none", 1).newest() is None


def test_a_checkpoint_just_written_is_never_the_one_to_go(tmp_path):
    """Damaged ones of later steps would fill the quota: the next kill would throw the run back to its beginning."""
    for step in (8, 9):
        path = Checkpoints(tmp_path, keep=2).save({"step": step})
        path.write_bytes(path.read_bytes()[:-1])
    for step in (1, 2, 3):
        checkpoints = Checkpoints(tmp_path, keep=2)  # each of a process of its own, which is killed
        checkpoints.newest()
        checkpoints.save({"step": step})
        assert Checkpoints(tmp_path, keep=2).newest() == {"step": step}
    alone = Checkpoints(tmp_path, keep=1)  # which has not looked what is damaged
    assert alone.save({"step": 4}).exists()


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "odd", [Path.mkdir, fifo, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("step-1")]
)
def test_what_is_no_checkpoint_is_left_out(tmp_path, capsys, odd):
    checkpoints = Checkpoints(tmp_path, keep=2)
    good = checkpoints.save({"step": 1})
    (tmp_path / "step-1").write_bytes(good.read_bytes())
    odd(tmp_path / f"step-000000002-{good.name[-19:-3]}.pt")
    assert checkpoints.newest() == {"step": 1} and "is damaged and left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": "x"},
        {"step": 10**9},
        {"learner": {}},
        {"optimizer": "x"},
        {"unread": 3},
        {"begun_with": 3},
    ],
    ids=str,
)
def test_an_intact_checkpoint_with_another_content(settings, change):
    def cut(step):
        if step == 3:
            raise Cut

    with pytest.raises(Cut):
        train(changed(settings, checkpoint_minutes=0), act=cut)
    checkpoints = Checkpoints(settings.output / "linprobe/run/checkpoints", 1)
    content = packed(checkpoints.newest() | change)
    (checkpoints.folder / f"step-000000003-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    with pytest.raises(InputError, match="the newest checkpoint of .* is none of this run"):
        train(changed(settings, checkpoint_minutes=0, resume=True))


# What somebody else did to the folder


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "{}",
        '{"step": "1"}',
        '{"step": 1, "loss": "x"}',
        '{"step": 1, "\\u001b": 1}',
        "[" * 9999,
        "9" * 5000,
        "\xff",
    ],
)
def test_lines_of_metrics_that_are_none(settings, capsys, line):
    with pytest.raises(Cut):
        train(settings, act=lambda step: (_ for _ in ()).throw(Cut))
    rows = '{"step": 0, "loss": 5.0}\n'
    (settings.output / "linprobe/run/metrics.jsonl").write_bytes(f"{rows}{line}\n{rows}".encode("latin-1"))
    run, _ = train(changed(settings, resume=True))
    assert losses(run)[:2] == [5.0, 5.0] and "metrics.jsonl has damaged lines" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "config.yaml"])
@pytest.mark.parametrize("planted", ["link", "fifo", "folder"])
def test_nothing_planted_in_a_runs_folder_is_followed(settings, tmp_path, name, planted):
    with pytest.raises(Cut):
        train(settings, act=lambda step: (_ for _ in ()).throw(Cut))
    victim, path = tmp_path / "victim", settings.output / "linprobe/run" / name
    victim.write_text(path.read_text())
    path.unlink()
    {"link": lambda: path.symlink_to(victim), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[planted]()
    before = victim.read_text()
    with pytest.raises(InputError, match=r"cannot (read|write) .*linprobe/run"):
        train(changed(settings, resume=True))
    assert victim.read_text() == before


def test_what_a_killed_process_left_half_written_is_removed(settings):
    with pytest.raises(Cut):
        train(settings, act=lambda step: (_ for _ in ()).throw(Cut))
    folder = settings.output / "linprobe/run"
    (folder / "checkpoints").mkdir(exist_ok=True)
    torn = [folder / ".model.pt.abcd1234.pt", folder / "checkpoints/.step-000000001-torn.pt"]
    for path in torn:
        path.write_bytes(b"half")
    train(changed(settings, resume=True))
    assert not any(path.exists() for path in torn)


class Asleep(Dataset):
    """Two items; reading the third never ends, as in a network share whose server is gone."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index > 1:
            time.sleep(3600)
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_that_is_stuck_does_not_keep_a_run_from_stopping(settings, monkeypatch, workers):
    class Stuck(Loader):
        def __iter__(self):
            data = DataLoader(
                Asleep(),
                batch_size=None,
                num_workers=workers,
                persistent_workers=workers > 0,
                worker_init_fn=leave_signals,
            )
            for i, _ in enumerate(results(data)):
                yield batch()
                if i == 1:  # not before: the signal would end the tests
                    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr("slidr.training.stopping.PATIENCE", 0.5)
    run = Run("linprobe", settings)
    with pytest.raises(Stopped, match="by SIGTERM after step 2 of 12.*, while data did not come; .*--resume"):
        fit(run, settings, Network(), Stuck(3))
    assert Checkpoints(run.folder / "checkpoints", 1).newest()["step"] == 2
    end_workers()
    assert not multiprocessing.active_children()


def test_what_cannot_be_written_does_not_end_the_training(settings, monkeypatch, capsys):
    """Rows and checkpoints that a full disk does not take: said once, and training goes on; what is there stays."""

    def full(path):
        raise InputError(f"cannot write {path}: No space left on device")

    settings = changed(settings, checkpoint_minutes=0)
    _, expected = train(changed(settings, name="whole"))

    def act(step):
        if step == 4:
            monkeypatch.setattr("slidr.training.checkpoint.atomic_write", full)
            monkeypatch.setattr("slidr.training.run_folder.open", lambda *_, **__: full("metrics.jsonl"), raising=False)

    _, network = train(settings, act=act)
    monkeypatch.undo()
    assert_same(network, expected)
    said = capsys.readouterr().err
    assert all(said.count(f"{what} cannot be written") == 1 for what in ("a checkpoint", "metrics.jsonl"))
    assert Checkpoints(settings.output / "linprobe" / "run" / "checkpoints", 1).newest()["step"] == 3


# Precision


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_every_precision_trains(settings, precision):
    run, network = train(changed(settings, precision=precision, epochs=10))
    assert losses(run)[-1] < losses(run)[0] and network.layer.weight.dtype == torch.float32


class Steep(Network):
    """A finite loss whose gradient is not, or is beyond fp16 once it is scaled."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope, self.accepted = slope, 0

    def forward(self, batch) -> Step:
        self.norm(torch.rand(8, 2))  # running statistics that have seen it
        return Step((self.layer.weight.sum() - self.layer.weight.sum().detach()) * self.slope + self.norm.weight.sum())

    def after_step(self, step, progress):
        self.accepted += 1


def test_a_gradient_beyond_fp16_lowers_the_scale_instead_of_the_weights(settings):
    network = Steep(6e34)
    before = copy.deepcopy(network)
    settings = changed(settings, precision="fp16", epochs=1)
    fit(Run("linprobe", settings), settings, network, Loader(1))
    assert_same(network, before)
    state = Checkpoints(settings.output / "linprobe/run/checkpoints", 1).newest()
    assert state["scaler"]["scale"] == 2.0**15 and state["bad_steps"] == network.accepted == 0


def test_a_finite_loss_with_a_gradient_that_is_not_is_a_bad_step(settings, capsys):
    network = Steep(float("inf"))
    network.forward = lambda batch: Step((network.layer.weight.square().sum() * 0 + 1e-45).sqrt() * 1e30)
    network.layer.weight.data.fill_(1e25)
    before = copy.deepcopy(network.state_dict())
    fit(Run("linprobe", settings), changed(settings, epochs=1), network, Loader(1))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.accepted == 0 and "the norm of its gradient nan" in capsys.readouterr().err


def test_gradients_are_clipped_to_their_norm(settings):
    moved = {}
    for clip in (0.0, 0.5, 1e9):
        network = Network()
        before = network.layer.weight.detach().clone()
        asked = changed(settings, epochs=1, clip_gradients=clip, weight_decay=0.0, name=f"clip{clip}")
        run, _ = train(asked, network, steps=1)
        moved[clip] = before - network.layer.weight.detach(), run.rows[0]["gradient_norm"]
    free, norm = moved[0.0]
    assert norm > 0.5 and torch.equal(moved[1e9][0], free) and moved[0.5][1] == norm
    torch.testing.assert_close(moved[0.5][0], free * 0.5 / norm)


def test_a_run_goes_on_only_with_what_it_began_with(settings, monkeypatch):
    """Other data or processes would leave epochs in pieces: half a training could be passed over in silence."""
    settings = changed(settings, checkpoint_minutes=0)

    def cut(step):
        if step == 3:
            raise Cut

    with pytest.raises(Cut):
        train(settings, act=cut)
    again = changed(settings, resume=True)
    with pytest.raises(InputError, match="was begun with scans 3, now there is 4"):
        train(again, steps=4)
    run = Run("linprobe", again)
    with monkeypatch.context() as patch:
        patch.setattr("slidr.training.distributed.world", lambda: 2)
        with pytest.raises(InputError, match="was begun with processes 1, now there is 2"):
            fit(run, again, Network(), Loader(3))
    run._lock.close()
    other = Network()
    other.identity = lambda: {"teacher": "another"}
    with pytest.raises(InputError, match="was begun with teacher None, now there is another"):
        train(again, other)
    train(again)


def test_an_empty_split_is_refused(settings):
    with pytest.raises(InputError, match="no batch to train on"):
        fit(Run("x", settings), settings, Network(), Loader(0))


@pytest.mark.parametrize("name", ["../elsewhere", "..", ".", "a/b", "/", "x" * 201, "a\0b", "\x1b[2J", "\ud800"])
def test_a_name_is_one_folder(settings, name):
    with pytest.raises(InputError, match="`name` cannot be .*(one folder|control characters)"):
        changed(settings, name=name)


def test_the_seed_decides_every_draw(settings):
    draws = [(prepare(settings), torch.rand(3))[1] for _ in range(2)]
    assert torch.equal(*draws)


def test_a_device_that_does_not_exist(settings):
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        prepare(settings.model_copy(update={"device": "abacus"}))
    for device in ("mps", "xpu", "meta", "hpu", "mkldnn"):
        with pytest.raises(InputError, match="computes on cpu and cuda alone"):
            prepare(settings.model_copy(update={"device": device}))
