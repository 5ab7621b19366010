"""The loop: schedule, modes, a loss that is no number; and the folder of a run."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from data.disk import InputError
from data.frame import Batch, Pairs
from slidr import config
from slidr.training import Run, Stopped, cosine, fit, prepare, sgd
from slidr.training.checkpoint import Checkpoints


def batch() -> Batch:
    none = torch.zeros(0)
    return Batch(none, none, none, None, None, None, Pairs(none, none, none, none), ids=["a-frame"])


class Loader:
    """As `data.loading.Loader`: `n` steps an epoch."""

    def __init__(self, n: int):
        self.n, self.epochs, self.unread = n, [], set()

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


def test_the_learning_rate_follows_the_originals_schedule(shared):
    stored = json.loads(shared("golden", "step", "E_lr_schedules.json").read_text())
    for name, epochs in {"pretrain_lr0.5_50epochs": 50, "finetune_head2.0_trunk0.02_100epochs": 100}.items():
        for epoch, rates in enumerate(stored[name][:epochs]):
            assert rates == pytest.approx([base * cosine(epoch, epochs) for base in stored[name][0]], abs=1e-7)


def test_fit_trains_logs_and_validates(settings):
    layer = nn.Linear(1, 1)
    loader, seen, validations = Loader(5), [], []
    run = Run("linprobe", settings)

    def loss_of(b):
        seen.append((layer.training, optimizer.param_groups[0]["lr"]))
        return layer(torch.ones(1, 1)).square().sum(), {"extra": 1.0}

    def validate(epoch):
        layer.eval()
        validations.append(1)
        return {"val_miou": 0.5}

    optimizer = sgd(settings, [{"params": list(layer.parameters()), "lr": 0.1}])
    fit(run, settings, loader, optimizer, loss_of, layer, validate)
    run.finish("# done\n")
    assert len(seen) == 20 and all(training for training, _ in seen)
    assert [lr for _, lr in seen[::5]] == pytest.approx([0.1 * cosine(e, 4) for e in range(4)])
    assert loader.epochs == [0, 1, 2, 3] and len(validations) == 2
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] and rows[-1]["val_miou"] == 0.5 and rows[0]["extra"] == 1.0
    assert (run.folder / "report.md").read_text() == "# done\n"


def test_what_a_person_reads_while_it_trains(settings, capsys):
    """Loss, learning rate, the stage's own numbers, speed of frames and images, waiting, time left, validation."""

    class WithImages(Loader):
        def __iter__(self):
            return iter([replace(batch(), images=torch.zeros(6, 3, 1, 1)) for _ in range(self.n)])

    weight = nn.Parameter(torch.ones(1))
    optimizer = sgd(settings, [{"params": [weight], "lr": 0.5}])
    run, loss_of = Run("x", settings), lambda b: (weight.sum(), {"pairs": 22430, "accuracy": 0.123456})
    fit(run, settings, WithImages(5), optimizer, loss_of, nn.ParameterList([weight]), lambda _: {"val_loss": 4.56789})
    row = next(row for row in run.rows if row["step"] == 10)
    assert row["images_per_second"] == pytest.approx(6 * row["frames_per_second"])
    assert 0 <= row["waiting_for_data"] <= 1 and row["pairs"] == 22430 and row["lr"] == 0.5 * cosine(1, 4)
    last, validated = capsys.readouterr().out.splitlines()[-2:]
    assert "epoch 4/4  step 20/20  loss " in last and "pairs 22,430  accuracy 0.1235" in last and "00:00 left" in last
    assert validated == "x: epoch 4/4  val loss 4.568"


class Network(nn.Module):
    """One layer and a batch norm, which remembers what it has seen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(x))


def train(settings, network=None, steps=3, spoil=(), act=None, validate=None):
    """A run of random inputs that depend on the step's seed alone; (run, network). `act(step)` happens in a step."""
    network = network or Network()
    count = itertools.count(1)
    loader = Loader(steps)

    def loss_of(b):
        step = next(count) + (0 if not run.goes_on else start)
        if act:
            act(step)
        scale = float("nan") if step in spoil else 1.0
        return network(scale * torch.rand(8, 2)).square().mul(torch.rand(8, 2)).sum(), {}

    run = Run("linprobe", settings)
    content = Checkpoints(run.folder / "checkpoints", 1).newest()
    start = content["step"] if content else 0
    fit(
        run,
        settings,
        loader,
        sgd(settings, [{"params": list(network.parameters()), "lr": 0.1}]),
        loss_of,
        network,
        validate,
    )
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
    assert "the loss of step 0 is nan (frames a-frame); it is left out, and kept in" in capsys.readouterr().err
    content = torch.load(run.folder / "nonfinite-000000000.pt", weights_only=True)
    assert content["ids"] == ["a-frame"] and content["step"] == 0 and content["bad_steps"] == 1
    run, network = train(changed(settings, name="more"), spoil=(2, 5, 9))
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert len([f for f in run.folder.iterdir() if f.name.startswith("nonfinite")]) == 3


def test_too_many_bad_steps_stop_the_run(settings):
    with pytest.raises(
        InputError, match=r"the loss of step 3 is nan \(frames a-frame\), the 3. such step; .*--replay .*pt"
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
    whole, expected = train(changed(settings, name="whole"), validate=lambda epoch: {"val_miou": 1 / epoch})

    def act(step):
        if step == cut:
            raise Cut

    with pytest.raises(Cut):
        train(settings, act=act)
    torch.rand(cut)  # the state of the generators does not matter
    run, network = train(changed(settings, resume=True), validate=lambda epoch: {"val_miou": 1 / epoch})
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
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
        Run("linprobe", changed(settings, name=run.folder.name, resume=True))


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
    (tmp_path / ".step-torn.pt").write_bytes(b"half")
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


def test_what_cannot_be_written_does_not_end_the_training(settings, monkeypatch, capsys):
    """Rows and checkpoints that a full disk does not take: said once, and training goes on; what is there stays."""

    def full(path):
        raise InputError(f"cannot write {path}: No space left on device")

    settings = changed(settings, checkpoint_minutes=0)
    _, expected = train(changed(settings, name="whole"))

    def act(step):
        if step == 4:
            monkeypatch.setattr("slidr.training.checkpoint.atomic_write", full)
            monkeypatch.setattr("slidr.training.run.open", lambda *_, **__: full("metrics.jsonl"), raising=False)

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


def test_a_gradient_beyond_fp16_lowers_the_scale_instead_of_the_weights(settings):
    network = Network()
    before = copy.deepcopy(network)

    def loss_of(b):
        return network.layer(torch.ones(1, 2)).float().sum() * 6e4, {}  # times the scale: beyond fp16

    settings = changed(settings, precision="fp16", epochs=1)
    run = Run("linprobe", settings)
    optimizer = sgd(settings, [{"params": list(network.layer.parameters()), "lr": 0.1}])
    fit(run, settings, Loader(1), optimizer, loss_of, network)
    assert_same(network, before)
    state = Checkpoints(run.folder / "checkpoints", 1).newest()
    assert state["scaler"]["scale"] == 2.0**15


def test_an_empty_split_is_refused(settings):
    network = Network()
    optimizer = sgd(settings, [{"params": list(network.parameters()), "lr": 0.1}])
    with pytest.raises(InputError, match="no batch to train on"):
        fit(Run("x", settings), settings, Loader(0), optimizer, lambda b: None, network)


def test_a_name_is_one_folder(settings):
    with pytest.raises(InputError, match="names one folder"):
        Run("x", settings.model_copy(update={"name": "../elsewhere"}))


def test_the_seed_decides_every_draw(settings):
    draws = [(prepare(settings), torch.rand(3))[1] for _ in range(2)]
    assert torch.equal(*draws)


def test_a_device_that_does_not_exist(settings):
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        prepare(settings.model_copy(update={"device": "abacus"}))
