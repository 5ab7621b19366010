"""Files: never half-written; broken ones are one clear sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.datasets.dataset import ReadOptions
from data.datasets.layout import read_points
from data.files import InputError, atomic_write, inside, read_array, read_json, read_text, require_folder
from data.images import read_image
from data.progress import Progress


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b.txt"
    for content in ("first", "second"):
        with atomic_write(target) as temporary:
            temporary.write_text(content)
            assert temporary.parent == target.parent and temporary.suffix == ".txt"
        assert target.read_text() == content
    assert os.listdir(target.parent) == ["b.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "b.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_atomic_write_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*file/b.txt"), atomic_write(tmp_path / "file" / "b.txt"):
        pass


def test_disk_full_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_write(tmp_path / "b.txt"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_require_folder(tmp_path):
    assert require_folder(str(tmp_path), "data set", "get it.") == tmp_path
    with pytest.raises(InputError, match="no data set at .*gone: get it."):
        require_folder(tmp_path / "gone", "data set", "get it.")


def test_read_array(tmp_path):
    file = tmp_path / "a.bin"
    for rows in (0, 1, 1023):
        values = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        values.tofile(file)
        np.testing.assert_array_equal(read_array(file, "<f4", 4), values)
        np.testing.assert_array_equal(read_array(file, "<f4", rows=4 * rows), values.ravel())
    with pytest.raises(InputError, match="a.bin has 4092 entries for a scan of 7 points"):
        read_array(file, "<f4", rows=7)
    with pytest.raises(InputError, match="a.bin is truncated: 16368 bytes"):
        read_array(file, "<f4", 5)
    with pytest.raises(InputError, match="cannot read .*gone.bin"):
        read_array(tmp_path / "gone.bin", "<f4")
    with pytest.raises(InputError, match="cannot read"):
        read_array(tmp_path, "<f4")


@pytest.mark.parametrize("columns", [4, 5])
def test_read_points(tmp_path, columns):
    file = tmp_path / "a.bin"
    values = np.random.default_rng(0).normal(size=(1023, columns)).astype(np.float32)
    values[:, 3] = np.abs(values[:, 3])
    values[:, 4:] = np.nan  # the laser's number is not read
    values.tofile(file)
    points = read_points(file, columns)
    np.testing.assert_array_equal(points, values[:, :4])
    assert points.flags.writeable and points.flags.c_contiguous


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 49), st.tuples(st.integers(0, 3), st.sampled_from([np.nan, np.inf, -np.inf]))))
def test_points_that_are_not_finite_keep_their_rows(tmp_path_factory, broken):
    file = tmp_path_factory.mktemp("scan") / "a.bin"
    values = np.zeros((50, 4), np.float32)
    for row, (column, value) in broken.items():
        values[row, column] = value
    values.tofile(file)
    if len(broken) == 50:
        with pytest.raises(InputError, match="a.bin has NaN or infinity in 50 of its 50 points"):
            read_points(file, 4)
    else:
        points = read_points(file, 4)
        assert np.isnan(points).all(1).tolist() == [row in broken for row in range(50)]
        assert (points[~np.isnan(points)] == 0).all()


@pytest.mark.parametrize("far", [4, 5, 6])
def test_points_beyond_a_lidars_range(tmp_path, far):
    """A few are left out of what is seen; of many the number of columns is in doubt, or the unit."""
    values = np.ones((50, 4), np.float32)
    values[:far, :3] = 1001 * np.eye(3)[np.arange(far) % 3]
    values.tofile(tmp_path / "a.bin")
    if far > 5:
        with pytest.raises(InputError, match="columns: 6 of its 50 points would be more than a kilometre away"):
            read_points(tmp_path / "a.bin", 4, ReadOptions(columns=4))
    else:
        assert np.isnan(read_points(tmp_path / "a.bin", 4)).all(1).sum() == far


@pytest.mark.parametrize("order", ["in turn", "two lasers", "random"])
@pytest.mark.parametrize("columns", [4, 5, 6, 8])
def test_the_number_of_columns_shows(tmp_path, columns, order):
    """Points that follow each other are near each other, unless lasers take turns or somebody mixed them."""
    rng = np.random.default_rng(0)
    scan = np.cumsum(rng.normal(0, 0.1, (2000, columns)), 0) + rng.uniform(-20, 20, columns)
    scan[:, 3] = rng.uniform(0, 1, len(scan))
    if order == "two lasers":
        scan[::2, :3] += (30, 20, 5)
    scan = rng.permutation(scan) if order == "random" else scan
    scan.astype(np.float32).tofile(tmp_path / "a.bin")
    assert len(read_points(tmp_path / "a.bin", columns)) == 2000
    for wrong in [n for n in (4, 5, 8, 10) if n % columns and columns != 2 * n] if order == "in turn" else ():
        with pytest.raises(InputError, match=f"not seem to have {wrong} columns: its numbers look alike every"):
            read_points(tmp_path / "a.bin", 4, ReadOptions(columns=wrong))


def test_read_text(tmp_path):
    (tmp_path / "a").write_text("straße", encoding="utf-8")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    assert read_text(tmp_path / "a") == "straße"
    (tmp_path / "a").write_text("straße", encoding="utf-8-sig")  # with a byte order mark
    assert read_text(tmp_path / "a") == "straße"
    for name in ("b", "gone"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_text(tmp_path / name)


def test_read_json(tmp_path):
    (tmp_path / "a").write_text('[{"a": 1}]', encoding="utf-8-sig")
    assert read_json(tmp_path / "a") == [{"a": 1}] and read_json(tmp_path / "a", keep=len) == [1]
    for content in ("", "[", "[" * 100_000, "9" * 5000):
        (tmp_path / "a").write_text(content)
        with pytest.raises(InputError, match="a is no JSON"):
            read_json(tmp_path / "a")


@settings(max_examples=30)
@given(st.integers(1, 200), st.data())
def test_negative_intensities_are_refused_unless_the_columns_are_given(tmp_path_factory, rows, data):
    """Some may be: a sensor's own correction of a dark return."""
    file, negative = tmp_path_factory.mktemp("scan") / "a.bin", data.draw(st.integers(0, rows))
    values = np.ones((rows, 4), np.float32)
    values[:negative, 3] = -0.5
    values.tofile(file)
    np.testing.assert_array_equal(read_points(file, 5, ReadOptions(columns=4)), values)
    if negative > 0.1 * rows:
        with pytest.raises(InputError, match=f"not seem to have 4 columns: {negative} of its {rows} intensities"):
            read_points(file, 4)
    else:
        np.testing.assert_array_equal(read_points(file, 4), values)


def test_read_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    Image.fromarray(image[:, :, 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), image[:, :, :1].repeat(3, 2))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_every_truncated_image_is_an_input_error(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    content = file.read_bytes()
    for length in [0, 1, *range(7, len(content) - 64, 97)]:
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match="cannot decode the image .*a"):
            read_image(file)


def test_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    for name in ("a.jpg", "gone.jpg"):
        with pytest.raises(InputError, match=f"cannot (decode the image|read) .*{name}"):
            read_image(tmp_path / name)


def test_progress_is_plain_lines_without_a_terminal(capsys):
    assert list(Progress(range(3), desc="maps", unit="image")) == [0, 1, 2]
    with Progress(total=0, desc="nothing"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("maps: 3/3, ") and "image/s" in lines[0]


def test_a_relative_root_means_the_folder_one_is_in(tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place / "data" / "samples").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        file = inside(Path("data"), "samples/scan.bin")
        assert file == tmp_path / place / "data" / "samples" / "scan.bin"
