"""Published settings and figures, scores of several seeds, tables, weights, and the official definitions of mIoU."""

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.datasets import find_dataset, open_reader
from data.files import InputError
from data.frame import Needs
from slidr import config
from slidr.networks.model_file import Model, Pretraining, TaskRecord
from slidr.networks.student import StudentSpec
from slidr.repeats import repeat, search, sweep
from slidr.report import score_table, write_csv
from slidr.stages import fewshot
from slidr.stages.fewshot import published
from slidr.tasks.published import beside
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome, Scores, mean_scores, read_scores, write_scores
from slidr.tasks.segmentation import ConfusionMatrix, segmentation_scores
from slidr.tasks.start import choose_weights, network_name, starting_student
from slidr.training import Diverged, Run

NAN = float("nan")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--dataset=nuscenes"], ("scenes", 100, 0.02, 2.0)),
        (["--dataset=nuscenes", "--pct=10"], ("scenes", 50, 0.02, 2.0)),
        (["--dataset=nuscenes", "--weights=random"], ("scenes", 100, 0.05, 0.05)),
        (["--dataset=kitti"], ("frames", 100, 0.05, 2.0)),
        (["--dataset=kitti", "--pct=10", "--weights=random"], ("frames", 100, 0.05, 0.05)),
        (["--dataset=kitti", "--lr=0.3", "--lr_head=0.4", "--epochs=7", "--subset=scenes"], ("scenes", 7, 0.3, 0.4)),
    ],
)
def test_the_published_schedules(flags, wanted):
    s = published(config.load(config.Fewshot, flags, "fewshot"))
    assert (s.subset, s.epochs, s.lr, s.lr_head) == wanted


def test_a_random_start_takes_the_pretraining_recipes_student():
    settings = config.load(config.Linprobe, ["--weights=random"], "linprobe")
    assert choose_weights("linprobe", settings) == ("random", "random")
    student, pretraining = starting_student(settings, 17)
    assert (student.spec.architecture, student.spec.width) == ("res16unet14c", 0.5) and pretraining is None


def test_a_run_that_goes_on_keeps_its_weights(tmp_path):
    """Whatever has been trained since; a new run takes the newest pretraining."""
    for i, name in enumerate(("old", "new")):
        path = tmp_path / "pretrain" / name / "model.pt"
        path.parent.mkdir(parents=True)
        path.write_text("")
        os.utime(path, (i, i))
        settings = config.load(config.Linprobe, [f"--output={tmp_path}"], "linprobe")
        weights, source = choose_weights("linprobe", settings)
        assert weights == str(path) and source == f"{path} (the newest pretraining)"
        if name == "old":
            begun = settings.model_copy(update={"weights": weights, "name": "run"})
            Run("linprobe", begun)._lock.close()
    for update in ({"name": "run"}, {"name": None}):
        again = settings.model_copy(update=update | {"resume": True})
        weights, source = choose_weights("linprobe", again)
        assert weights == str(tmp_path / "pretrain/old/model.pt") and source.endswith("(as the run began)")
    several = settings.model_copy(update={"name": "anything", "seeds": 2})
    assert choose_weights("linprobe", several, "run")[0] == str(tmp_path / "pretrain/old/model.pt")
    others = again.model_copy(update={"lr": 0.7})
    assert choose_weights("linprobe", others)[0] == str(tmp_path / "pretrain/new/model.pt")
    with pytest.raises(InputError, match="there is no pretraining under .*nowhere.*--weights random"):
        choose_weights("linprobe", settings.model_copy(update={"output": tmp_path / "nowhere"}))


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("random", "random"),
        ("my runs/best/model.pt", "best"),
        ("output/linprobe/a/best.pt", "a/best"),
        ("theirs.pt", "theirs"),
        ("model.pt", "model"),
    ],
)
def test_what_a_network_is_called(weights, name):
    assert network_name(weights) == name


CLASSES = ("car", "bus")
SCORES = Scores(
    {"car": 50.0, "bus": NAN, "mIoU": 50.0},
    "mIoU",
    "IoU",
    comparable={"counted otherwise": 75.0},
    details={"accuracy": 70.0, "confusion": [[0, 2], [1, 3]]},
)


def other(**figures: float) -> Scores:
    return replace(SCORES, figures=SCORES.figures | figures)


def test_the_table_has_a_row_a_class_and_a_dash_where_one_is_absent():
    columns = {"mine": SCORES, "random": SCORES}
    table = score_table(columns)
    assert table.startswith("| IoU (%) | mine | random |\n")
    assert "| car | 50.0 | 50.0 |" in table and "| bus | – | – |" in table and "| **mIoU** | 50.0 | 50.0 |" in table
    assert "otherwise" not in table
    assert "| counted otherwise | 75.0 | 75.0 |" in score_table(columns, comparable=True)


def test_several_seeds_make_a_mean_and_a_standard_deviation():
    mean = mean_scores([SCORES, other(car=60.0, bus=10.0, mIoU=35.0), other(car=10.0, bus=20.0, mIoU=15.0)])
    assert mean.figures["car"] == pytest.approx(40) and mean.spread["car"] == pytest.approx(
        statistics.stdev([50, 60, 10])
    )
    assert math.isnan(mean.figures["bus"])  # absent once: no mean of three
    assert mean.value == pytest.approx(100 / 3) and mean.deviation == pytest.approx(statistics.stdev([50, 35, 15]))
    assert mean.comparable == {"counted otherwise": 75.0} and mean.spread["counted otherwise"] == 0
    assert "| car | 40.0 ± 26.5 |" in score_table({"mine": mean})
    alone = mean_scores([SCORES])
    assert alone.spread == {} and alone.value == 50 and math.isnan(alone.deviation)


def test_scores_there_and_back(tmp_path):
    path = tmp_path / "scores.json"
    for scores in (SCORES, mean_scores([SCORES, other(car=60.0)])):
        write_scores(path, scores)
        json.loads(path.read_text(), parse_constant=pytest.fail)  # nan is null
        np.testing.assert_equal(vars(read_scores(path)), vars(scores))
    write_scores(path, replace(SCORES, details={"accuracy": NAN}))
    assert math.isnan(read_scores(path).details["accuracy"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": {"a": "b"}}', '{"miou": 0.3, "iou": [null]}'])
def test_a_file_that_holds_no_scores(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no scores; remove its folder and run again"):
        read_scores(path)


def test_scores_without_their_primary_figure_are_broken(tmp_path):
    write_scores(tmp_path / "scores.json", replace(SCORES, primary="mAP"))
    with pytest.raises(InputError, match="holds no scores"):
        read_scores(tmp_path / "scores.json")


def test_the_csv_holds_the_table(tmp_path):
    columns = {"mine": mean_scores([SCORES, other(mIoU=30.0)]), "SLidR": other(car=NAN, mIoU=38.8)}
    write_csv(columns, tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["figure"] for row in rows] == ["car", "bus", "mIoU"]
    assert rows[0] == {"figure": "car", "mine": "50.000", "mine (std)": "0.000", "SLidR": ""}
    assert rows[2] == {"figure": "mIoU", "mine": "40.000", "mine (std)": "14.142", "SLidR": "38.800"}
    write_csv(columns, tmp_path / "scores.csv", comparable=True)
    assert list(csv.DictReader((tmp_path / "scores.csv").open()))[-1]["figure"] == "counted otherwise"


# Published figures

PUBLISHED_SPEC = StudentSpec(architecture="res16unet34c", width=1.0, grid="cylindrical", voxel_size=(0.1, 1.0, 0.1))
METHODS = ("SLidR", "PPKT†", "PointContrast†", "DepthContrast†", "random")


def zeros(dataset: str) -> Scores:
    """Scores of a network that gets nothing right."""
    classes = find_dataset(dataset).classes
    empty = ConfusionMatrix(len(classes))
    return segmentation_scores(empty, empty, classes)


def model(stage: str, dataset: str, pct: float, spec=PUBLISHED_SPEC, pretraining=("slidr", "nuscenes")) -> Model:
    record = TaskRecord(stage=stage, dataset=dataset, pct=pct)
    trained = pretraining and Pretraining(method=pretraining[0], dataset=pretraining[1])
    return Model(stage=stage, spec=spec, backbone={}, task=record, pretraining=trained)


def published_of(stage: str, dataset: str, pct: float, frames: int = 6019, split: str = "val"):
    return beside(zeros(dataset), model(stage, dataset, pct), stage, dataset, split, frames)


@pytest.mark.parametrize("dataset", ["nuscenes", "kitti"])
def test_published_rows_average_to_the_published_means(dataset):
    """A slip of the pen in a class would show in the mean."""
    columns = published_of("fewshot", dataset, 1.0).columns
    assert tuple(columns) == METHODS
    for scores in columns.values():
        assert tuple(scores.figures) == (*find_dataset(dataset).classes[1:], "mIoU")
        assert abs(np.mean(list(scores.figures.values())[:-1]) - scores.value) < 0.105
        assert scores.unit == "%" and not scores.comparable


def test_only_matching_settings_have_published_rows():
    assert published_of("linprobe", "nuscenes", 100.0).columns["SLidR"].value == 38.8
    five = published_of("fewshot", "nuscenes", 5.0).columns
    assert {name: s.value for name, s in five.items()} == {"SLidR": 52.2, "random": 47.7}
    assert published_of("fewshot", "nuscenes", 1.0).columns["SLidR"].value == 38.3  # not the sweep's 39.0
    for setting in (("fewshot", "nuscenes", 2), ("linprobe", "kitti", 100), ("fewshot", "synthetic", 1)):
        assert published_of(*setting) is None
    assert published_of("fewshot", "nuscenes", 1.0, split="pretrain_val") is None
    trained = model("fewshot", "nuscenes", 1.0)
    assert beside(zeros("synthetic"), trained, "fewshot", "synthetic", "val", 9) is None  # scored on other data


def test_the_sweep_has_curves_of_its_own():
    trained = model("fewshot", "nuscenes", 50.0)
    curves = beside(zeros("nuscenes"), trained, "sweep", "nuscenes", "val", 6019).curves
    assert {pct: s.value for pct, s in curves["SLidR"].items()} == {1: 39.0, 5: 52.2, 10: 58.8, 25: 66.2, 100: 74.6}
    assert {pct: s.value for pct, s in curves["random"].items()} == {1: 30.3, 5: 47.7, 10: 56.6, 25: 64.8, 100: 74.2}


def test_a_sweep_of_several_methods_has_what_is_published_of_them():
    trained = model("fewshot", "kitti", 50.0, pretraining=("pointcontrast", "kitti"))
    found = beside(zeros("kitti"), trained, "sweep", "kitti", "val", 4071).of_methods({"pointcontrast", "random"})
    assert {name: {pct: s.value for pct, s in curve.items()} for name, curve in found.curves.items()} == {
        "PointContrast†": {1: 41.1},
        "random": {1: 39.5},
    }
    assert found.of_methods({"mine"}) is None


@pytest.mark.parametrize(("method", "said"), [("slidr", False), ("pointcontrast", True), ("depthcontrast", True)])
def test_it_is_said_whose_rates_stand_in(method, said):
    tuned = model("fewshot", "nuscenes", 1.0, pretraining=(method, "nuscenes"))
    text = beside(zeros("nuscenes"), tuned, "fewshot", "nuscenes", "val", 6019).sentence
    assert ("prints none of them (D.2): those of `fewshot` are SLidR's" in text) == said
    probed = model("linprobe", "nuscenes", 100.0, pretraining=(method, "nuscenes"))
    columns = beside(zeros("nuscenes"), probed, "linprobe", "nuscenes", "val", 6019)
    assert "prints none" not in columns.sentence  # one rate for all methods is printed (D.1)
    assert [columns.columns[name].value for name in ("PointContrast†", "DepthContrast†")] == [21.9, 22.1]


def test_a_sentence_says_what_differs_from_published_figures():
    same = published_of("linprobe", "nuscenes", 100.0).sentence
    assert "Sautier et al., CVPR 2022" in same and "100 % of nuscenes's labels" in same
    assert "Nothing known differs. The same: " in same and "pretrained with slidr on nuscenes" in same
    assert 'the row "mIoU as the published code counts"' in same
    small = PUBLISHED_SPEC.model_copy(update={"architecture": "res16unet14c", "width": 0.5})
    ours = model("fewshot", "kitti", 1.0, small, ("ppkt", "kitti"))
    text = beside(zeros("kitti"), ours, "fewshot", "kitti", "val", 33).sentence
    assert "ours res16unet14c of width 0.5, cylindrical voxels 0.1 x 1 x 0.1, theirs res16unet34c of width 1," in text
    assert "ours scored on 33 frames, theirs on 4,071" in text
    assert "ours pretrained with ppkt on kitti, theirs on nuscenes" in text
    ours = model("linprobe", "nuscenes", 100.0)
    ours = ours.model_copy(update={"task": ours.task.model_copy(update={"head": "mlp", "epoch": "best"})})
    text = beside(zeros("nuscenes"), ours, "linprobe", "nuscenes", "val", 6019).sentence
    assert "ours a probe with the head mlp, theirs linear; ours of the best epoch, theirs of the last." in text
    ours = model("fewshot", "kitti", 1.0, pretraining=None)
    text = beside(zeros("kitti"), ours, "fewshot", "kitti", "val", 4071).sentence
    assert "What differs: ours with no record of a pretraining, theirs on nuscenes." in text
    assert "The same: res16unet34c of width 1" in text and "scored on 4,071 frames" in text


# A task whose figure is no mIoU


@dataclass
class Depth:
    """Guesses how far points lie; the contract's other end from segmentation."""

    bias: float

    needs = Needs()

    def evaluate(self, loader: Iterable[float]) -> Scores:
        errors = np.array([self.bias - truth for truth in loader])
        figures = {"near": float(abs(errors[0])), "RMSE": float(np.sqrt((errors**2).mean()))}
        return Scores(figures, "RMSE", "RMSE", "m", "min")

    def draw(self, index: int, folder: Path, name: str) -> list[str]:
        (folder / f"depth_{name}.png").write_text(f"frame {index}")
        return [f"depth_{name}.png"]


class Toy:
    """A stage around that task; `runs` counts its calls, `bias` is how wrong it is."""

    def __init__(self, bias=lambda settings: settings.seed + 100 / settings.pct):
        self.runs, self.bias = [], bias

    def __call__(self, settings: config.Fewshot) -> Outcome:
        self.runs.append(settings.name)
        task, log = Depth(self.bias(settings)), Run("toy", settings)
        reader = [0.0, 1.0]
        return finish(log, settings, task, reader, task.evaluate(reader), settings.weights)


@pytest.fixture
def toy(tmp_path) -> config.Fewshot:
    flags = [f"--output={tmp_path}", "--weights=random", "--name=depth", "--seeds=2", "--pictures=2", "--pct=100"]
    return config.load(config.Fewshot, flags, "fewshot")


def test_a_task_with_another_figure_goes_through_seeds(toy, tmp_path, capsys):
    run = Toy()
    outcome = repeat("toy", run, toy, lambda *_: None)
    wanted = [math.sqrt(((1 + seed) ** 2 + seed**2) / 2) for seed in (0, 1)]
    assert outcome.scores.value == pytest.approx(np.mean(wanted)) and outcome.folder == tmp_path / "toy/depth"
    assert outcome.scores.deviation == pytest.approx(statistics.stdev(wanted))
    out = capsys.readouterr().out
    row = f"| **RMSE** | {np.mean(wanted):.1f} ± {statistics.stdev(wanted):.1f} |"
    assert row in out and "| RMSE (m) | mean of 2 seeds |" in out
    report = (tmp_path / "toy/depth/report.md").read_text()
    assert "RMSE (m, less is better): " in report and row in report
    np.testing.assert_equal(vars(read_scores(tmp_path / "toy/depth/scores.json")), vars(outcome.scores))
    one = (tmp_path / "toy/depth-seed1/report.md").read_text()
    assert "![depth_0.png](depth_0.png)" in one and (tmp_path / "toy/depth-seed1/depth_1.png").exists()

    assert repeat("toy", run, toy, lambda *_: None).scores.value == outcome.scores.value
    assert run.runs == ["depth-seed0", "depth-seed1"]  # what is finished is not run again
    with pytest.raises(InputError, match="depth-seed0 holds a run with `lr`"):
        repeat("toy", run, toy.model_copy(update={"lr": 0.7}), lambda *_: None)


def test_a_task_with_another_figure_goes_through_a_sweep(toy, tmp_path, capsys):
    run, folder = Toy(), tmp_path / "toy" / "curve"
    points = {
        line: {pct: toy.model_copy(update={"pct": pct, "seed": seed}) for pct in (50.0, 100.0)}
        for line, seed in (("pretrained", 0), ("random", 3))
    }
    lines = sweep("toy", run, points, folder, lambda *_: None)
    assert list(lines) == ["pretrained", "random"] and list(lines["random"]) == [50.0, 100.0]
    assert lines["pretrained"][100.0].unit == "m" and lines["pretrained"][100.0].deviation > 0
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert list(rows[0]) == ["network", "labels (%)", "RMSE", "std"] and len(rows) == 4
    assert float(rows[1]["RMSE"]) == pytest.approx(lines["pretrained"][100.0].value, abs=1e-3)
    report = (folder / "report.md").read_text()
    assert report.startswith("# Annotation efficiency curve, RMSE (m, less is better)")
    assert "| labels (%) | pretrained | random |" in report and (folder / "sweep.png").stat().st_size > 0
    assert run.runs[0] == "curve-pretrained-50pct-seed0" and run.runs[2] == "curve-random-50pct-seed3"
    sweep("toy", run, points, folder, lambda *_: None)
    assert len(run.runs) == 8 and capsys.readouterr().out.count("is finished and used as it is") == 8


def test_where_the_best_epoch_was_chosen_is_said_of_seeds_and_sweeps(toy, tmp_path):
    best = toy.model_copy(update={"keep": "best"})
    repeat("toy", Toy(), best, lambda *_: None)
    sweep("toy", Toy(), {"random": {100.0: best}}, tmp_path / "toy/curve", lambda *_: None)
    for name in ("depth", "curve"):
        assert best.remark in (tmp_path / "toy" / name / "report.md").read_text()
    assert "chosen on the split that is scored" in best.remark and toy.remark == ""


def grid(toy: config.Fewshot, lrs=(0.01, 0.02, 0.1), heads=(1.0, 2.0)) -> dict:
    rates = {h: [{"lr": r, "lr_head": h, "name": f"rates-{r:g}-{h:g}"} for r in lrs] for h in heads}
    return {f"{h:g}": {s["lr"]: toy.model_copy(update=s) for s in settings} for h, settings in rates.items()}


def test_a_search_finds_the_least_error_and_goes_on(toy, tmp_path, capsys):
    def bias(s: config.Fewshot) -> float:
        if s.lr == 0.1:
            raise Diverged("the loss of step 3 is nan.")
        return 1 + s.seed + 10 * abs(s.lr - 0.02) + abs(s.lr_head - 2)

    run, folder = Toy(bias), tmp_path / "toy" / "rates"
    found = search("toy", run, grid(toy), toy, folder, "Scored on nothing.")
    wanted = [math.sqrt(((1 + seed) ** 2 + seed**2) / 2) for seed in (0, 1)]
    assert found.folder == folder and found.scores.value == pytest.approx(np.mean(wanted))
    out, err = capsys.readouterr()
    report = (folder / "report.md").read_text()
    best = f"{np.mean(wanted):.1f} ± {statistics.stdev(wanted):.1f}"
    for text in (out, report):
        assert f"Chosen: lr 0.02, lr_head 2 (RMSE {best} m). That is at the edge of the grid: a wider" in text
        assert "a wider --search_lr_head runs what is new. Scored on nothing." in text  # 0.02 lies inside
        assert "| lr \\ lr_head | 1 | 2 |" in text and "| 0.1 | – | – |" in text and f" | {best} |" in text
    assert report.startswith("# Learning rates rates, RMSE (m, less is better)")
    assert err.count("has no score: the loss of step 3 is nan.") == 2
    rows = list(csv.DictReader((folder / "search.csv").open()))
    assert [(row["lr_head"], row["lr"]) for row in rows[1:4]] == [("1", "0.02"), ("1", "0.1"), ("2", "0.01")]
    assert rows[2]["RMSE"] == "" and float(rows[4]["RMSE"]) == pytest.approx(np.mean(wanted), abs=1e-3)

    began = list(run.runs)
    search("toy", run, grid(toy, (0.005, 0.01, 0.02)), toy, folder, "Scored on nothing.")  # a wider one
    new = run.runs[len(began) :]
    assert new == [f"rates-0.005-{head}-seed{seed}" for head in (1, 2) for seed in (0, 1)]
    with pytest.raises(InputError, match="every pair of learning rates diverged"):
        search("toy", run, grid(toy, (0.1,)), toy, folder, "")


def searched(monkeypatch, *flags: str) -> tuple[dict[str, dict[float, config.Fewshot]], str]:
    """The points of a search, and what is said of them."""
    monkeypatch.setattr(fewshot, "search", lambda stage, run, points, settings, folder, remark: (points, remark))
    return fewshot.run_search(config.load(config.Fewshot, ["--search", *flags], "fewshot"))


def test_rates_are_chosen_on_splits_that_the_data_set_names(monkeypatch):
    points, remark = searched(monkeypatch, "--dataset=nuscenes", "--weights=a.pt", "--pct=5")
    every = [point for at in points.values() for point in at.values()]
    assert {(p.train_split, p.val_split, p.epochs, p.search) for p in every} == {
        ("pretrain", "pretrain_val", 50, False)
    }
    assert [(p.lr, p.lr_head) for p in every] == [(r, h) for h in (1, 2, 5) for r in (0.01, 0.02, 0.05, 0.1)]
    assert "share no scene with each other or with `val`" in remark
    splits = find_dataset("nuscenes").splits
    parts = [set(splits[name]) for name in ("pretrain", "pretrain_val", "val")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 600 + 100 + 150

    for flags in (["--dataset=kitti"], ["--dataset=synthetic"], ["--dataset=nuscenes", "--val_split=mini_val"]):
        points, remark = searched(monkeypatch, *flags, "--weights=a.pt")
        point = points["2"][0.05]
        assert (point.train_split, point.val_split) == ("train", "mini_val" if len(flags) > 1 else "val")
        assert "of which final scores are, too" in remark and "chosen on sequence 08" in remark


def test_a_search_from_random_weights_has_one_rate(monkeypatch):
    points, _ = searched(monkeypatch, "--dataset=kitti", "--weights=random")
    assert [(p.lr, p.lr_head) for p in points["as lr"].values()] == [(r, r) for r in (0.01, 0.02, 0.05, 0.1)]
    points, _ = searched(monkeypatch, "--weights=a.pt", "--lr=0.3", "--search_lr_head=3,1")
    assert [(h, list(at)) for h, at in points.items()] == [("1", [0.3]), ("3", [0.3])]
    with pytest.raises(InputError, match="one share of the labels: give one --pct, no --sweep"):
        searched(monkeypatch, "--sweep=1,10")


@pytest.mark.parametrize(("dataset", "folder"), [("nuscenes", "nuscenes2"), ("kitti", "semantickitti33")])
def test_scores_on_real_frames_are_the_official_definitions(shared, dataset, folder):
    """True labels with a third of them disturbed, against counts by sets of points."""
    reader = open_reader(dataset, shared("realdata", folder), "all")
    classes = reader.dataset.classes
    k, rng = len(classes), np.random.default_rng(0)
    confusion, everything = ConfusionMatrix(k), ([], [])
    for i in range(0, len(reader), 11):
        labels = reader.read(i, Needs(labels=True)).labels.astype(int)
        prediction = np.where(rng.random(len(labels)) < 0.3, rng.integers(1, k, len(labels)), labels.clip(1))
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        everything[0].append(labels), everything[1].append(prediction)
    labels, prediction = (np.concatenate(parts) for parts in everything)
    labels, prediction = labels[labels != 0], prediction[labels != 0]  # both benchmarks leave unlabelled points out
    iou = {}
    for c in range(1, k):
        union = np.sum((labels == c) | (prediction == c))
        iou[c] = 100 * np.sum((labels == c) & (prediction == c)) / union if union else NAN
    scores = segmentation_scores(confusion, confusion, classes)
    ours = list(scores.figures.values())[:-1]
    np.testing.assert_allclose(ours, list(iou.values()), rtol=1e-12)
    # Mean over the classes (those that occur; on the official splits all do)
    assert scores.value == pytest.approx(np.nanmean(list(iou.values())), rel=1e-12)
    frequency = np.bincount(labels, minlength=k) / len(labels)
    weighted = scores.details["frequency-weighted IoU"]
    assert weighted == pytest.approx(np.nansum([frequency[c] * iou[c] for c in iou]), rel=1e-12)
    assert scores.details["accuracy"] == pytest.approx(100 * (labels == prediction).mean(), rel=1e-12)
    if dataset == "nuscenes":
        devkit = pytest.importorskip("nuscenes.eval.lidarseg.utils").ConfusionMatrix(k, ignore_idx=0)
        devkit.update(labels, prediction)
        np.testing.assert_allclose(100 * np.array(devkit.get_per_class_iou())[1:], ours, rtol=1e-9)
        assert 100 * devkit.get_mean_iou() == pytest.approx(scores.value, rel=1e-9)
        assert 100 * devkit.get_freqweighted_iou() == pytest.approx(weighted, rel=1e-9)
