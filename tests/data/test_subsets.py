"""Shares of labels: as published, drawn by a seed, or from a list."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.nuscenes import RECORD
from data.files import InputError
from data.frame import Frame, Needs
from data.subsets import choose_subset, every_nth, select, write_subset


@dataclass
class FakeReader:
    scenes: list

    dataset = RECORD
    intensity_scale, intensity_offset = 2.0, 0.5

    @property
    def ids(self):
        return [f"frame{i}" for i in range(len(self.scenes))]

    def read(self, index, needs, rng=None):
        return Frame(f"{self.ids[index]} {needs.cameras} {rng}", np.zeros((0, 4), np.float32))

    def image_files(self):
        return [("token", Path("image.jpg"))]


READER = FakeReader([f"scene{i // 10}" for i in range(100)])


def test_a_selection_is_a_reader():
    chosen = select(READER, np.array([70, 5]))
    assert len(chosen) == 2 and chosen.ids == ["frame70", "frame5"] and chosen.scenes == ["scene7", "scene0"]
    assert (chosen.dataset, chosen.intensity_scale, chosen.intensity_offset) == (RECORD, 2.0, 0.5)
    assert chosen.read(1, Needs(cameras=1), rng="generator").id == "frame5 1 generator"
    assert chosen.image_files() == READER.image_files()
    assert select(chosen, [1]).read(0, Needs()).id == "frame5 0 None"


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
    assert choose_subset(READER, 50, "scenes").scenes == [s for s in READER.scenes if int(s[5:]) % 2 == 0]
    assert choose_subset(READER, 10, "frames").ids == [f"frame{i}" for i in range(0, 100, 10)]
    with pytest.raises(InputError, match="leave no frame"):
        choose_subset(FakeReader([]), 1, "frames")


@pytest.mark.parametrize("kind", ["scenes", "frames"])
@given(seed=st.integers(0, 2**31), small=st.floats(1, 100), large=st.floats(1, 100))
def test_a_seeded_subset_is_the_same_again_and_part_of_the_larger_ones(kind, seed, small, large):
    small, large = sorted((small, large))
    ids = choose_subset(READER, small, kind, seed).ids
    assert ids == choose_subset(READER, small, kind, seed).ids == sorted(ids, key=READER.ids.index)
    assert set(ids) <= set(choose_subset(READER, large, kind, seed).ids)
    assert len(ids) == len(choose_subset(READER, small, kind).ids)  # as many as every n-th


def test_seeds_draw_different_scenes():
    drawn = {tuple(dict.fromkeys(choose_subset(READER, 30, "scenes", seed).scenes)) for seed in range(10)}
    assert len(drawn) > 5 and all(len(scenes) == 3 for scenes in drawn)


def test_a_list_gives_the_very_frames_again(tmp_path):
    chosen = choose_subset(READER, 7, "frames", seed=3)
    write_subset(tmp_path / "subset.txt", chosen, "7 % of it")
    assert (tmp_path / "subset.txt").read_text().startswith("# 7 % of it\nframe")
    again = choose_subset(READER, 1, str(tmp_path / "subset.txt"))
    assert again.ids == chosen.ids and again.scenes == chosen.scenes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no frame"),
        ("# frame1\n\n", "names no frame"),
        ("frame1\nframe100\nzebra\n", "names 2 .* `frame100`"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        choose_subset(READER, 1, str(path))


def test_a_subset_that_is_neither_a_kind_nor_a_file():
    with pytest.raises(InputError, match="`subset` cannot be 'sceens'"):
        choose_subset(READER, 1, "sceens")
