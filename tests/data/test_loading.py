"""Loading: the same batches whatever the number of workers, every frame in its turn, errors in their own words."""

import gc
import os
import weakref
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.augment import AugmentSettings
from data.files import InputError
from data.frame import Batch, CameraView, Frame, Needs, Pairs, collate
from data.loading import make_loader
from data.samples.single import Single
from data.subsets import select
from data.superpixels import SuperpixelSettings, compute, load, map_path

SLIC = SuperpixelSettings(segments=8, sigma=1.0)
DRAWN = AugmentSettings(crop=(16, 24), min_pairs=10)


class Frames:
    """A Reader of small random frames, always the same; `broken` ones raise."""

    dataset, intensity_offset, intensity_scale = None, 0.5, 1.0

    def __init__(self, length: int, broken: tuple[int, ...] = (), whose: bool = False):
        self.ids, self.scenes = [f"f{i}" for i in range(length)], [f"s{i // 2}" for i in range(length)]
        self.broken, self.whose = broken, whose

    def __len__(self):
        return len(self.ids)

    def read(self, index: int, needs: Needs, rng=None) -> Frame:
        if index in self.broken:
            raise InputError(f"{self.ids[index]}.bin is truncated; download it again.")
        rng = np.random.default_rng(index)
        points = 100 + index
        size = (32, 48 + (index == 77))
        pairs = Pairs(*(rng.integers(0, end, 200) for end in (points, 2, *size)))
        return Frame(
            id=f"{os.getpid()} {torch.get_num_threads()}" if self.whose else self.ids[index],
            points=rng.normal(size=(points, 4)).astype(np.float32),
            labels=rng.integers(0, 2, points).astype(np.uint8) if needs.labels else None,
            cameras=[CameraView(f"c{c}", f"{index}-{c}", rng.integers(0, 256, (*size, 3), np.uint8)) for c in range(2)]
            if needs.cameras
            else [],
            pairs=pairs if needs.cameras else Pairs.empty(),
        )

    def image_files(self) -> list[tuple[str, Path]]:
        return [(f"{i}-{c}", Path(f"{i}-{c}.jpg")) for i in range(len(self)) for c in range(2)]


EVERYTHING = Needs(cameras="all", labels=True)


def loader_of(reader, needs=EVERYTHING, augment=None, superpixels=None, **changed):
    if superpixels:
        needs = replace(needs, superpixels=True)
    usual = {"batch": 2, "workers": 0, "seed": 1, "shuffle": False}
    return make_loader(Single(reader, needs, augment, superpixels), **usual | changed)


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.ids == b.ids
    for one, other in ((a, b), (a.pairs, b.pairs)):
        for f in fields(one):
            value = getattr(one, f.name)
            if isinstance(value, torch.Tensor):
                assert value.dtype == getattr(other, f.name).dtype and value.equal(getattr(other, f.name)), f.name
    assert (a.labels is None, a.images is None) == (b.labels is None, b.images is None)


# What comes out


def test_without_augmentation_frames_come_as_read():
    reader = Frames(5)
    batches = list(loader_of(reader))
    assert [b.ids for b in batches] == [["f0", "f1"], ["f2", "f3"], ["f4"]] and len(loader_of(reader)) == 3
    for batch, rows in zip(batches, ([0, 1], [2, 3], [4]), strict=True):
        assert_equal(batch, collate([reader.read(i, EVERYTHING) for i in rows], intensity_offset=0.5))
        assert batch.features.equal(batch.points[:, 3:] + 0.5) and batch.superpixels is None


def test_only_what_is_asked_for_is_read():
    batch = next(iter(loader_of(Frames(2), needs=Needs(labels=True))))
    assert batch.images is None and len(batch.pairs) == 0 and batch.labels is not None
    batch = next(iter(loader_of(Frames(2), needs=Needs(cameras="all"))))
    assert batch.labels is None and batch.images.shape == (4, 3, 32, 48)


def test_no_frames_no_batches():
    assert list(loader_of(Frames(0))) == [] and len(loader_of(Frames(0))) == 0


# The same run again


def test_batches_do_not_depend_on_the_workers(tmp_path):
    asked = {"augment": DRAWN, "superpixels": (tmp_path, SLIC), "shuffle": True}
    loaders = [loader_of(Frames(5), workers=workers, **asked) for workers in (0, 1, 2)]
    for epoch in (0, 1):
        runs = []
        for loader in loaders:
            loader.set_epoch(epoch)
            runs.append(list(loader))
            assert len(runs[-1]) == len(loader) == 3
        for batches in zip(*runs, strict=True):
            assert_equal(batches[0], batches[1])
            assert_equal(batches[0], batches[2])
            assert batches[0].images.shape[2:] == (16, 24) and batches[0].superpixels.shape[1:] == (16, 24)


def test_a_frame_is_augmented_by_seed_epoch_and_index_alone():
    """Not by its place in the order or its neighbours in the batch."""

    def clouds(epoch, seed=1, **changed):
        loader = loader_of(Frames(6), augment=DRAWN, seed=seed, **changed)
        loader.set_epoch(epoch)
        return {name: b.points[b.batch_index == i] for b in loader for i, name in enumerate(b.ids)}

    one = clouds(3)
    other = clouds(3, batch=5, shuffle=True)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    for changed in (clouds(4), clouds(3, seed=2)):
        assert not any(len(one[n]) == len(changed[n]) and one[n].equal(changed[n]) for n in one)
    assert len({round(float(cloud[0, 0]), 4) for cloud in one.values()}) == 6


def test_a_new_order_each_epoch():
    loader = loader_of(Frames(20), batch=20, shuffle=True, needs=Needs(labels=True))
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append(next(iter(loader)).ids)
    assert orders[0] == orders[2] != orders[1]
    assert all(sorted(order) == sorted(Frames(20).ids) for order in orders)
    assert orders[0] != Frames(20).ids


def test_workers_stay_and_have_one_thread_each():
    loader = loader_of(Frames(8, whose=True), workers=2, batch=1, needs=Needs(labels=True))
    epochs = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        epochs.append({b.ids[0] for b in loader})
    assert epochs[0] == epochs[1] and len(epochs[0]) == 2
    assert all(who.split()[1] == "1" and int(who.split()[0]) != os.getpid() for who in epochs[0])


@given(st.integers(0, 23), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_processes_share_the_frames(length, world, each, epoch):
    """Every frame once an epoch; processes that train take their steps together, with the frames of one process."""
    for shuffle in (True, False):
        asked = {"batch": each * world, "shuffle": shuffle, "needs": Needs()}
        if shuffle and 0 < length < world:
            with pytest.raises(InputError, match=f"{world} processes cannot share"):
                loader_of(Frames(length), **asked, world=world)
            continue
        shares = []
        for rank in range(world):
            loader = loader_of(Frames(length), **asked, rank=rank, world=world)
            loader.set_epoch(epoch)
            shares.append([batch.ids for batch in loader])
        everyone = [name for share in shares for ids in share for name in ids]
        assert sorted(everyone) == sorted(Frames(length).ids)
        if shuffle:
            assert {len(share) for share in shares} == {len(loader)}
            alone = loader_of(Frames(length), **asked)
            alone.set_epoch(epoch)
            for step, batch in enumerate(list(alone)[: len(loader) - 1]):
                assert sorted(batch.ids) == sorted(name for share in shares for name in share[step])


def test_processes_that_train_have_equal_shares():
    with pytest.raises(InputError, match="2 processes cannot share a batch of 3 .* a multiple of 2"):
        loader_of(Frames(9), batch=3, shuffle=True, world=2)
    assert len(list(loader_of(Frames(9), batch=1, world=2, needs=Needs(labels=True)))) == 5  # evaluation: one each


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_on_where_it_was_left(workers):
    loader = loader_of(Frames(7), shuffle=True, needs=Needs(labels=True), workers=workers)
    loader.set_epoch(2)
    whole = [batch.ids for batch in loader]
    loader.set_epoch(2, skip=3)
    assert len(loader) == 4 and [batch.ids for batch in loader] == whole[3:]
    loader.set_epoch(2)
    assert [batch.ids for batch in loader] == whole


# Superpixels


def test_missing_maps_are_made_and_kept(tmp_path):
    reader = Frames(2)
    first = list(loader_of(reader, superpixels=(tmp_path, SLIC)))
    files = sorted((tmp_path / "superpixels_slic_8_6_1").iterdir())
    assert [f.name for f in files] == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]
    for i, view in enumerate(view for index in (0, 1) for view in reader.read(index, EVERYTHING).cameras):
        np.testing.assert_array_equal(first[0].superpixels[i], compute(view.image, SLIC))
        np.testing.assert_array_equal(first[0].superpixels[i], load(files[i], (32, 48), "image"))
    Image.fromarray(np.full((32, 48), 7, np.uint8)).save(map_path(tmp_path, SLIC, "0-1"))  # made by others
    second = next(iter(loader_of(reader, superpixels=(tmp_path, SLIC))))
    assert (second.superpixels[1] == 7).all() and second.superpixels[0].equal(first[0].superpixels[0])


# Errors


def error_of(batches) -> str:
    """The sentence of the InputError that the next batches raise (pytest.raises would keep the workers alive)."""
    try:
        for _ in batches:
            pass
    except InputError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_that_cannot_be_read(workers):
    """The reader's own error, after the batches before it; other frames can be read again."""
    loader = loader_of(Frames(5, broken=(3,)), workers=workers)
    for _ in range(2):
        batches = iter(loader)
        assert next(batches).ids == ["f0", "f1"]
        assert error_of(batches) == "f3.bin is truncated; download it again."


def test_an_error_lets_go_of_the_workers():
    """Without waiting for the garbage collector, which might run in the next loader's workers."""
    loader = loader_of(Frames(2, broken=(0,)), workers=1)
    gone = weakref.ref(loader)
    gc.disable()
    try:
        assert "truncated" in error_of(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_of_the_wrong_size(tmp_path, workers):
    path = map_path(tmp_path, SLIC, "1-0")
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(path)
    error = error_of(loader_of(Frames(2), superpixels=(tmp_path, SLIC), workers=workers))
    assert error.startswith(f"the superpixel map {path} has 3 x 4 pixels, its image c0 1-0 has 32 x 48")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_two_sizes_in_one_batch(workers):
    error = error_of(loader_of(select(Frames(78), [76, 77]), workers=workers))
    assert error.startswith("the images of one batch have sizes [(32, 48), (32, 49)]")


# Subsets


def test_select():
    reader = Frames(6)
    chosen = select(reader, np.array([4, 1]))
    assert len(chosen) == 2 and chosen.ids == ["f4", "f1"] and chosen.scenes == ["s2", "s0"]
    assert (chosen.dataset, chosen.intensity_scale, chosen.intensity_offset) == (None, 1.0, 0.5)
    assert_equal(next(iter(loader_of(chosen))), collate([reader.read(4, EVERYTHING), reader.read(1, EVERYTHING)], 0.5))
    assert chosen.read(0, Needs(labels=True)).cameras == [] and chosen.read(0, Needs(cameras="all")).labels is None
    assert chosen.image_files() == reader.image_files()
    assert select(chosen, [1]).ids == ["f1"] and len(select(reader, [])) == 0
