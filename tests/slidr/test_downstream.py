"""Subsets of labels, published settings, and the table of scores."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.disk import InputError
from slidr import config
from slidr.downstream import choose_subset, every_nth, score_table, starting_student
from slidr.stages.fewshot import published


@dataclass
class FakeReader:
    scenes: list

    name = "nuscenes"
    classes = ("ignored", "car")
    intensity_offset = 0.0

    @property
    def ids(self):
        return [f"frame{i}" for i in range(len(self.scenes))]


@pytest.mark.parametrize(
    ("items", "pct", "count"), [(19130, 1, 192), (700, 1, 7), (700, 25, 175), (3, 100, 3), (5, 0.1, 1)]
)
def test_the_published_number_of_frames(items, pct, count):
    rows = every_nth(items, pct)
    assert len(rows) == count and rows[0] == 0
    if float(100 / pct).is_integer():
        assert rows == list(range(0, items, int(100 / pct)))


@given(st.integers(1, 3000), st.floats(0.01, 100))
def test_any_share_is_even_and_inside(items, pct):
    rows = every_nth(items, pct)
    assert rows and rows == sorted(set(rows)) and rows[-1] < items


def test_scenes_or_frames():
    reader = FakeReader([f"scene{i // 10}" for i in range(100)])
    assert choose_subset(reader, 50, "scenes").scenes == [s for s in reader.scenes if int(s[5:]) % 2 == 0]
    assert choose_subset(reader, 10, "frames").ids == [f"frame{i}" for i in range(0, 100, 10)]
    with pytest.raises(InputError, match="leave no frame"):
        choose_subset(FakeReader([]), 1, "frames")


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
    student, source = starting_student(config.load(config.Linprobe, ["--weights=random"], "linprobe"), 17)
    assert source == "random" and (student.spec.architecture, student.spec.width) == ("res16unet14c", 0.5)


def test_the_table_has_a_row_a_class_and_a_dash_where_one_is_absent():
    scores = {"iou": [float("nan"), 0.5, float("nan")], "miou": 0.5, "code_compatible_miou": 0.75}
    table = score_table({"mine": scores, "random": scores}, ("ignored", "car", "bus"))
    assert "| car | 50.0 | 50.0 |" in table and "| bus | – | – |" in table and "| **mIoU** | 50.0 | 50.0 |" in table
