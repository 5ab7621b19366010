"""Published settings and figures, scores of several seeds, tables, and the official definitions of mIoU."""

import csv
import math
import statistics

import numpy as np
import pytest
import torch

from data.datasets import open_reader
from data.labels import CLASSES
from slidr import config
from slidr import published as figures
from slidr.downstream import pin_weights, starting_student
from slidr.report import load_scores, mean_scores, save_scores, score_table, write_csv
from slidr.segmentation import ConfusionMatrix
from slidr.stages.fewshot import published


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
    settings, source = pin_weights(config.load(config.Linprobe, ["--weights=random"], "linprobe"))
    student = starting_student(settings, 17)
    assert source == "random" and (student.spec.architecture, student.spec.width) == ("res16unet14c", 0.5)


NAN = float("nan")
SCORES = {"iou": [NAN, 0.5, NAN], "miou": 0.5, "fwiou": 0.5, "accuracy": 0.7, "code_compatible_miou": 0.75}


def test_the_table_has_a_row_a_class_and_a_dash_where_one_is_absent():
    table = score_table({"mine": SCORES, "random": SCORES}, ("ignored", "car", "bus"))
    assert "| car | 50.0 | 50.0 |" in table and "| bus | – | – |" in table and "| **mIoU** | 50.0 | 50.0 |" in table
    assert "| mIoU as the published code counts | 75.0 | 75.0 |" in table


def test_several_seeds_make_a_mean_and_a_standard_deviation():
    other = SCORES | {"iou": [NAN, 0.6, 0.1], "miou": 0.35}
    third = SCORES | {"iou": [NAN, 0.1, 0.2], "miou": 0.15}
    mean = mean_scores([SCORES, other, third])
    assert mean["iou"][1] == pytest.approx(0.4) and mean["std"]["iou"][1] == pytest.approx(
        statistics.stdev([0.5, 0.6, 0.1])
    )
    assert math.isnan(mean["iou"][2])  # absent once: no mean of three
    assert mean["miou"] == pytest.approx(1 / 3) and mean["std"]["miou"] == pytest.approx(
        statistics.stdev([0.5, 0.35, 0.15])
    )
    assert "| car | 40.0 ± 26.5 |" in score_table({"mine": mean}, ("ignored", "car", "bus"))
    assert "std" not in mean_scores([SCORES]) and mean_scores([SCORES])["miou"] == 0.5


def test_scores_there_and_back(tmp_path):
    save_scores(tmp_path / "scores.json", SCORES | {"confusion": [[0, 2], [1, 3]]})
    again = load_scores(tmp_path / "scores.json")
    assert again["confusion"] == [[0, 2], [1, 3]] and again["miou"] == 0.5
    np.testing.assert_array_equal(again["iou"], SCORES["iou"])


def test_the_csv_holds_the_table(tmp_path):
    columns = {"mine": mean_scores([SCORES, SCORES | {"miou": 0.3}]), "SLidR": {"iou": [NAN] * 3, "miou": 0.388}}
    write_csv(columns, ("ignored", "car", "bus"), tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["class"] for row in rows] == ["car", "bus", "mIoU", "mIoU as the published code counts"]
    assert rows[0] == {"class": "car", "mine": "50.000", "mine (std)": "0.000", "SLidR": ""}
    assert rows[2] == {"class": "mIoU", "mine": "40.000", "mine (std)": "14.142", "SLidR": "38.800"}


@pytest.mark.parametrize(("dataset", "classes"), [("nuscenes", "nuscenes"), ("kitti", "semantic_kitti")])
def test_published_rows_average_to_the_published_means(dataset, classes):
    """A slip of the pen in a class would show in the mean."""
    columns = figures.columns("fewshot", dataset, 1, len(CLASSES[classes]))
    assert tuple(columns) == figures.METHODS
    for scores in columns.values():
        assert len(scores["iou"]) == len(CLASSES[classes])
        assert abs(np.nanmean(scores["iou"]) - scores["miou"]) < 0.00105


def test_only_matching_settings_have_published_rows():
    assert figures.columns("linprobe", "nuscenes", 100, 17)["SLidR"]["miou"] == pytest.approx(0.388)
    five = figures.columns("fewshot", "nuscenes", 5.0, 17)
    assert {name: s["miou"] for name, s in five.items()} == pytest.approx({"SLidR": 0.522, "random": 0.477})
    for setting in (("fewshot", "nuscenes", 2), ("linprobe", "kitti", 100), ("fewshot", "synthetic", 1)):
        assert figures.columns(*setting, 17) == {}


@pytest.mark.parametrize(("dataset", "folder"), [("nuscenes", "nuscenes2"), ("kitti", "semantickitti33")])
def test_scores_on_real_frames_are_the_official_definitions(shared, dataset, folder):
    """True labels with a third of them disturbed, against counts by sets of points."""
    reader = open_reader(dataset, shared("realdata", folder), "all")
    k, rng = len(reader.classes), np.random.default_rng(0)
    confusion, everything = ConfusionMatrix(k), ([], [])
    for i in range(0, len(reader), 11):
        labels = reader.read(i, images=False).labels.astype(int)
        prediction = np.where(rng.random(len(labels)) < 0.3, rng.integers(1, k, len(labels)), labels.clip(1))
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        everything[0].append(labels), everything[1].append(prediction)
    labels, prediction = (np.concatenate(parts) for parts in everything)
    labels, prediction = labels[labels != 0], prediction[labels != 0]  # both benchmarks leave unlabelled points out
    iou = {}
    for c in range(1, k):
        union = np.sum((labels == c) | (prediction == c))
        iou[c] = np.sum((labels == c) & (prediction == c)) / union if union else NAN
    scores = confusion.scores()
    np.testing.assert_allclose(scores["iou"][1:], list(iou.values()), rtol=1e-12)
    # Mean over the classes (those that occur; on the official splits all do)
    assert scores["miou"] == pytest.approx(np.nanmean(list(iou.values())), rel=1e-12)
    frequency = np.bincount(labels, minlength=k) / len(labels)
    assert scores["fwiou"] == pytest.approx(np.nansum([frequency[c] * iou[c] for c in iou]), rel=1e-12)
    assert scores["accuracy"] == pytest.approx((labels == prediction).mean(), rel=1e-12)
    if dataset == "nuscenes":
        devkit = pytest.importorskip("nuscenes.eval.lidarseg.utils").ConfusionMatrix(k, ignore_idx=0)
        devkit.update(labels, prediction)
        np.testing.assert_allclose(np.array(devkit.get_per_class_iou())[1:], scores["iou"][1:], rtol=1e-9)
        assert devkit.get_mean_iou() == pytest.approx(scores["miou"], rel=1e-9)
        assert devkit.get_freqweighted_iou() == pytest.approx(scores["fwiou"], rel=1e-9)
