"""The contract that every pretraining method keeps (slidr.training.learner, slidr.methods.method): one test for all."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.datasets import find_dataset, open_reader
from data.datasets.synthetic import SyntheticWorld, write_nuscenes
from data.files import InputError
from data.loading import make_loader
from slidr import config
from slidr.inference import load
from slidr.methods import METHODS, find_method, settings_of
from slidr.stages import pretrain
from slidr.training import Run, distributed, fit, prepare
from slidr.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[3]
ALL = [*METHODS, "tests.slidr.methods.toy:Toy"]
WORLD = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=3, image_scale=0.1, azimuths=64)
# Small enough for seconds; keys that a method does not have are left out
SMALL = {
    "seed": 3, "threads": 1, "workers": 0, "dataset": "synthetic", "train_split": "train", "val_split": "val",
    "architecture": "res16unet14c", "width": 0.25, "voxel_size": [0.4, 2.0, 0.4], "batch": 2, "epochs": 3, "lr": 0.05,
    "checkpoint_minutes": 0, "validate_every": 1, "crop": [40, 64], "segments": 20, "min_pairs": 10,
    "teacher": "resnet_small", "teacher_weights": "random", "sampled_pairs": 100, "gather_negatives": True,
    "dilated": True, "device": "cpu", "min_distance": 2, "match_distance": 0.5, "min_matches": 5, "pairs": 50,
    "points": 64, "queue": 7, "encoder_momentum": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("contract")
    write_nuscenes(root / "nuscenes", WORLD)
    return root


@pytest.fixture(params=ALL, ids=lambda name: name.rsplit(":")[-1])
def settings(request, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return settings_for(request.param, world, tmp_path)


def settings_for(method: str, world: Path, folder: Path, **values):
    settings_type = settings_of(method)
    known = {name: value for name, value in SMALL.items() if name in settings_type.model_fields}
    places = {"method": method, "root": str(world), "output": str(folder / "output"), "name": "run"}
    maps = {"superpixels_folder": str(folder / "maps")} if "superpixels_folder" in settings_type.model_fields else {}
    return config.validate(settings_type, known | places | maps | values)


def made(settings):
    """(method, loader of the training split)"""
    device = prepare(settings)
    dataset = find_dataset(settings.dataset)
    reader = open_reader(dataset, settings.root, settings.train_split)
    method = find_method(settings.method)(settings, dataset).to(device)
    loader = make_loader(
        method.sample(reader, True), batch=settings.batch, workers=0, seed=settings.seed, shuffle=True,
        rank=distributed.rank(), world=distributed.world(),
    )  # fmt: skip
    return method, loader


def snapshot(method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_equal(a: dict, b: dict, but: set[str] = frozenset()) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - but:
        assert torch.equal(a[name], b[name]), name


def test_forward_changes_running_statistics_only(settings):
    method, loader = made(settings)
    batch = next(iter(loader))
    before, statistics = snapshot(method), set(distributed.running_statistics(method))
    loss = method.train()(batch).loss
    assert loss.ndim == 0 and loss.isfinite()
    assert_equal(snapshot(method), before, but=statistics)
    before = snapshot(method)
    method.eval()(batch)
    assert_equal(snapshot(method), before)


def test_in_eval_mode_it_talks_to_no_other_process(settings, monkeypatch):
    method, loader = made(settings)

    def refuse(*_):
        raise AssertionError("a process alone in evaluation would wait for ever")

    for name in ("gathered", "total", "share"):
        monkeypatch.setattr(distributed, name, refuse)
    with torch.no_grad():
        method.eval()(next(iter(loader)))


def test_every_trainable_parameter_gets_a_gradient(settings):
    method, loader = made(settings)
    method.train()(next(iter(loader))).loss.backward()
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    trainable = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_frozen_teacher_is_in_no_state_dict(settings):
    method, _ = made(settings)
    if not hasattr(method, "images"):
        pytest.skip("this method has no teacher")
    teacher = {id(p) for p in method.images.teacher.network.parameters()}
    assert not teacher & {id(p) for p in method.parameters()}
    assert not any("teacher" in name for name in method.state_dict())
    assert len(method.images.teacher.identity()["sha256"]) == 64
    assert method.images.teacher.identity()["sha256"] in method.identity()["teacher"]


def spoiled(method, steps: set[int]):
    """The loss of these calls is NaN."""
    forward, calls = method.forward, iter(range(100))

    def spoil(batch):
        step = forward(batch)
        step.loss = step.loss * (float("nan") if next(calls) in steps else 1.0)
        return step

    method.forward = spoil


def test_a_left_out_step_leaves_everything_as_it_was_and_replays(settings, capsys):
    settings = settings.model_copy(update={"epochs": 1, "batch": 4})  # one step
    method, loader = made(settings)
    before = snapshot(method)
    spoiled(method, {0})
    fit(Run("pretrain", settings), settings, method, loader)
    assert_equal(snapshot(method), before)
    file = settings.output / "pretrain/run/nonfinite-000000000.pt"
    capsys.readouterr()
    pretrain.run(settings.model_copy(update={"replay": file}))
    said = capsys.readouterr().out
    assert "step 0, epoch 1" in said and "loss in float32: " in said and "nan" not in said


class Cut(Exception):
    pass


def test_a_run_that_was_cut_off_ends_with_the_same_bits(settings, at=3):
    method, loader = made(settings.model_copy(update={"name": "whole"}))
    fit(Run("pretrain", settings.model_copy(update={"name": "whole"})), settings, method, loader)
    expected = snapshot(method)

    cut, loader = made(settings)
    after_step, calls = cut.after_step, iter(range(1, 100))

    def stop(step, progress):
        if next(calls) > at:
            raise Cut
        after_step(step, progress)

    cut.after_step = stop
    run = Run("pretrain", settings)
    with pytest.raises(Cut):
        fit(run, settings, cut, loader)
    run._lock.close()
    torch.rand(17)  # the state of the generators does not matter
    again = settings.model_copy(update={"resume": True})
    method, loader = made(again)
    fit(Run("pretrain", again), again, method, loader)
    assert Checkpoints(settings.output / "pretrain/run/checkpoints", 1).newest()["step"] == 6
    assert_equal(snapshot(method), expected)


def test_a_run_of_another_teacher_is_refused(settings, monkeypatch):
    method, loader = made(settings)
    if not method.identity():
        pytest.skip("this method has no teacher")
    run = Run("pretrain", settings)
    monkeypatch.setattr(method, "after_step", lambda step, progress: (_ for _ in ()).throw(Cut))
    with pytest.raises(Cut):
        fit(run, settings.model_copy(update={"batch": 2}), method, loader)
    run._lock.close()
    Checkpoints(run.folder / "checkpoints", 2).save({"step": 1, "begun_with": {"processes": 1, "scans": 3}})
    again = settings.model_copy(update={"resume": True})
    method, loader = made(again)
    with pytest.raises(InputError, match="was begun with teacher None, now there is resnet_small"):
        fit(Run("pretrain", again), again, method, loader)


def test_pretraining_as_a_user_runs_it(settings):
    """Validating twice gives the same number; model.pt loads and gives unit vectors in the shared space."""
    folder = pretrain.run(settings.model_copy(update={"epochs": 1}))
    network = load(folder / "model.pt")
    points = torch.rand(50, 4) * 20
    features = network(points)
    assert features.isfinite().all() and torch.allclose(features.norm(dim=1), torch.ones(50), atol=1e-5)
    assert network(points, features="backbone").shape == (50, 24)
    assert network.model.pretraining.method == settings.method and network.model.pretraining.dataset == "synthetic"
    method, _ = made(settings)
    reader = open_reader(find_dataset("synthetic"), settings.root, settings.val_split)
    loader = make_loader(method.sample(reader, False), batch=2, workers=0, seed=settings.seed, shuffle=False)
    first, second = (pretrain.validation_loss(method, loader, settings, torch.device("cpu")) for _ in range(2))
    assert first == second
    assert (folder / "report.md").exists() and (folder / "curves.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL, ids=lambda name: name.rsplit(":")[-1])
def test_two_processes_are_equal_after_every_step(method, world, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.slidr.methods.test_contract", method, str(world), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 steps compared" in done.stdout


def compare_processes(method: str, world: Path, folder: Path) -> None:
    """Train with two processes; after every step each compares its state with the first one's."""
    settings = settings_for(method, world, folder)
    learner, loader = made(settings)
    after_step, compared = learner.after_step, []

    def compare(step, progress):
        after_step(step, progress)
        for name, value in learner.state_dict().items():
            theirs = value.clone()
            torch.distributed.broadcast(theirs, 0)
            assert torch.equal(theirs, value), name
        compared.append(progress)

    learner.after_step = compare
    before = copy.deepcopy(learner.state_dict())
    fit(Run("pretrain", settings), settings, learner, loader)
    assert any(not torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    print(f"{len(compared)} steps compared")


if __name__ == "__main__":
    compare_processes(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
