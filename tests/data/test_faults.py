"""Faults of data while it is being read: bad frames, workers that die, a data set that is unplugged."""

import os
import shutil
import signal

import numpy as np
import pytest

from data.datasets.nuscenes import NuScenes
from data.datasets.semantic_kitti import SemanticKitti
from data.files import DataGone, InputError
from data.frame import Batch, Needs
from data.subsets import select
from tests.data.test_loading import DRAWN, EVERYTHING, Frames, error_of, loader_of

# Frames that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_frames_are_named_once_and_replaced(capsys, workers):
    """The number and the size of the batches stay; the neighbour stands in, of the last frame the first."""
    loader = loader_of(Frames(8, broken=(2, 7)), workers=workers, max_bad_frames=0.25)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert [batch.ids for batch in loader] == [["f0", "f1"], ["f3", "f3"], ["f4", "f5"], ["f6", "f0"]]
    assert loader.unread == {"f2", "f7"}
    err = capsys.readouterr().err
    for name in ("f2", "f7"):
        sentence = f"frame {name} is left out, another stands in for it: {name}.bin is truncated"
        assert err.count(sentence) == 1


def test_bad_frames_in_a_row(capsys):
    loader = loader_of(Frames(8, broken=(2, 3, 4)), max_bad_frames=0.5)
    assert [batch.ids for batch in loader] == [["f0", "f1"], ["f5", "f5"], ["f5", "f5"], ["f6", "f7"]]
    assert loader.unread == {"f2", "f3", "f4"} and capsys.readouterr().err.count("is left out") == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [(2, 5, 7), (4, 5, 6), tuple(range(8))])
def test_more_bad_frames_than_allowed(workers, broken):
    loader = loader_of(Frames(8, broken=broken), workers=workers, max_bad_frames=0.25)
    error = error_of(loader)
    assert error.startswith("3 of 8 frames cannot be read, more than --max_bad_frames allows; the last: f")
    assert error.endswith(".bin is truncated; download it again.") and "\n" not in error


def test_the_share_is_of_the_whole_split_and_counts_over_epochs():
    """The default, 0.1 %, lets one frame in a thousand pass, and none of fewer."""
    assert "truncated" in error_of(
        loader_of(Frames(999, broken=(0,)), batch=500, needs=Needs(labels=True), max_bad_frames=0.001)
    )
    loader = loader_of(Frames(1000, broken=(0,)), batch=500, needs=Needs(labels=True), max_bad_frames=0.001)
    assert error_of(loader) == "no error"
    loader._loader.dataset.sample.reader.broken = (1,)  # another one, later
    assert error_of(loader).startswith("2 of 1000 frames cannot be read")


# Points that no lidar measures


class Patchy(Frames):
    """The second and the last point of every frame are no measurements."""

    def read(self, index, *args, **options):
        frame = super().read(index, *args, **options)
        frame.points[[1, -1]] = np.nan
        return frame


@pytest.mark.parametrize("workers", [0, 2])
def test_unmeasured_points_are_said_once(capsys, workers):
    """Once a loader, whatever the epochs, frames and workers; the first frame is named."""
    loader = loader_of(Patchy(6), workers=workers)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for batch in loader:
            lost = batch.points.isnan().all(1).nonzero()[:, 0].tolist()
            first = len(Frames(6).read(int(batch.ids[0][1:]), Needs()).points)
            assert lost == [1, first - 1, first + 1, len(batch.points) - 1]  # their rows stay
            assert sorted([*batch.measured.tolist(), *lost]) == list(range(len(batch.points)))
    err = capsys.readouterr().err
    assert err.count("beyond any lidar's range") == 1 and "2 of the 100 points of frame f0 are NaN, infinite" in err


def test_augmented_frames_have_measured_points_only():
    """They are drawn as if the others were not in the scan; labels and pairs keep to their points."""
    (batch,) = loader_of(Patchy(1), augment=DRAWN)
    assert not batch.points.isnan().any() and batch.measured is None and len(batch.labels) == len(batch.points)
    frame = Patchy(1).read(0, EVERYTHING)
    there = ~np.isnan(frame.points[:, 0])
    kept = frame.select(there)
    kept_pairs = frame.pairs.select(there[frame.pairs.point])
    np.testing.assert_array_equal(kept.points[kept.pairs.point], frame.points[kept_pairs.point])
    np.testing.assert_array_equal(kept.labels, frame.labels[there])


# Workers that die


class Deadly(Frames):
    """Reading the third frame ends the process, in the way that it names."""

    def __init__(self, how):
        super().__init__(6)
        self.how = how

    def read(self, index, *args, **options):
        if index == 2:
            self.how()
        return super().read(index, *args, **options)


def out_of_memory():
    raise MemoryError


def an_array_too_many():
    np.zeros(10**15)


@pytest.mark.parametrize(
    ("how", "cause", "remedy"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "(Killed)", "ran out of memory; lower --workers or --batch"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "(Bus error)", "enlarge /dev/shm"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "(Segmentation fault)", "--workers 0"),
        (lambda: os._exit(3), "(it exited)", "--workers 0"),
    ],
    ids=["SIGKILL", "SIGBUS", "SIGSEGV", "exit"],
)
def test_a_worker_that_dies(how, cause, remedy):
    error = error_of(loader_of(Deadly(how), workers=2, max_bad_frames=0.5))
    assert error.startswith(f"a process that prepares data died {cause}: ") and remedy in error and "\n" not in error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", [out_of_memory, an_array_too_many])
def test_too_little_memory_is_no_bad_frame(workers, how):
    error = error_of(loader_of(Deadly(how), workers=workers, max_bad_frames=0.5))
    assert error == "there is too little memory to prepare f2: lower --workers or --batch."


def test_full_shared_memory(monkeypatch):
    def full(_batch):
        raise RuntimeError("unable to allocate shared memory (shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Batch, "share_memory_", full)
    assert error_of(loader_of(Frames(4), workers=0)) == "no error"
    error = error_of(loader_of(Frames(4), workers=1))
    assert error.startswith("a process cannot hand over its data") and "--shm-size" in error


# An unplugged data set


def unplug_by_renaming(folder):
    folder.rename(folder.with_name("away"))


def unplug_by_unmounting(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("unplug", [unplug_by_renaming, unplug_by_unmounting])
@pytest.mark.parametrize(
    ("reader", "folder"), [(NuScenes, ""), (NuScenes, "samples"), (SemanticKitti, ""), (SemanticKitti, "dataset")]
)
def test_a_data_set_that_is_unplugged_between_epochs(small_world, reader, folder, unplug, workers):
    root = small_world / {NuScenes: "nuscenes", SemanticKitti: "kitti"}[reader]
    loader = loader_of(reader(root, "all"), batch=1, workers=workers, shuffle=True, max_bad_frames=1.0)
    assert len(list(loader)) == 2 and not loader.unread
    unplug(root / folder)
    error = error_of(loader)
    assert error.startswith(f"the data set is gone: {root}") and "\n" not in error
    assert "mount or restore it and start again" in error and not loader.unread


def test_one_lost_file_is_no_lost_data_set(small_world):
    reader = SemanticKitti(small_world / "kitti", "all")
    next((small_world / "kitti").rglob("*.bin")).unlink()
    with pytest.raises(InputError, match="cannot read") as error:
        for index in range(len(reader)):
            reader.read(index, Needs(labels=True))
    assert not isinstance(error.value, DataGone)


def test_a_part_of_a_data_set_is_unplugged_with_the_rest(small_world):
    reader = select(NuScenes(small_world / "nuscenes", "all"), [1])
    shutil.rmtree(small_world / "nuscenes")
    with pytest.raises(DataGone, match="no longer there"):
        reader.read(0, Needs())
