"""The loop: schedule, modes, a loss that is no number; and the folder of a run."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from data.disk import InputError
from data.frame import Batch, Pairs
from slidr import config
from slidr.training import Run, cosine, fit, prepare, sgd


def batch() -> Batch:
    none = torch.zeros(0)
    return Batch(none, none, none, None, None, None, Pairs(none, none, none, none), ids=["a-frame"])


class Loader:
    epochs: list

    def __init__(self, n: int):
        self.n, self.epochs = n, []

    def __len__(self) -> int:
        return self.n

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self):
        return iter([batch() for _ in range(self.n)])


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

    def validate():
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
    fit(run, settings, WithImages(5), optimizer, loss_of, validate=lambda: {"val_loss": 4.56789})
    row = next(row for row in run.rows if row["step"] == 10)
    assert row["images_per_second"] == pytest.approx(6 * row["frames_per_second"])
    assert 0 <= row["waiting_for_data"] <= 1 and row["pairs"] == 22430 and row["lr"] == 0.5 * cosine(1, 4)
    last, validated = capsys.readouterr().out.splitlines()[-2:]
    assert "epoch 4/4  step 20/20  loss " in last and "pairs 22,430  accuracy 0.1235" in last and "00:00 left" in last
    assert validated == "x: epoch 4/4  val loss 4.568"


def test_without_a_trained_module_nothing_enters_train_mode(settings):
    layer = nn.Linear(1, 1).eval()
    optimizer = sgd(settings, [{"params": list(layer.parameters()), "lr": 0.1}])
    fit(Run("linprobe", settings), settings, Loader(1), optimizer, lambda b: (layer(torch.ones(1, 1)).sum(), {}))
    assert not layer.training


def test_a_loss_that_is_no_number_names_the_frames(settings):
    weight = nn.Parameter(torch.ones(1))
    optimizer = sgd(settings, [{"params": [weight], "lr": 0.1}])
    with pytest.raises(InputError, match="became nan at step 1 .*a-frame"):
        fit(Run("x", settings), settings, Loader(1), optimizer, lambda b: (weight.sum() * float("nan"), {}))


def test_an_empty_split_is_refused(settings):
    optimizer = sgd(settings, [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.1}])
    with pytest.raises(InputError, match="no batch to train on"):
        fit(Run("x", settings), settings, Loader(0), optimizer, lambda b: None)


def test_a_name_is_one_folder(settings):
    with pytest.raises(InputError, match="names one folder"):
        Run("x", settings.model_copy(update={"name": "../elsewhere"}))


def test_the_seed_decides_every_draw(settings):
    draws = [(prepare(settings), torch.rand(3))[1] for _ in range(2)]
    assert torch.equal(*draws)


def test_a_device_that_does_not_exist(settings):
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        prepare(settings.model_copy(update={"device": "abacus"}))
