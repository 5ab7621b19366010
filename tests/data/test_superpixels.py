"""Superpixel maps: equal to the published ones on equal pixels; stored whole, once, in the field's layout."""

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.measure import label

from data import superpixels
from data.files import InputError
from data.frame import CameraView, read_view
from data.images import read_image
from data.superpixels import SuperpixelSettings, compute, compute_all, load, load_or_compute, map_path, save

SMALL = SuperpixelSettings(segments=12, sigma=1.0)


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Smooth random colours `[H, W, 3]` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


# What a map is


@pytest.mark.parametrize("index", [0, 7])
def test_slic_is_the_published_codes(shared, index):
    """Bit for bit on bit-equal pixels; JPEG decoders differ, so another Pillow may have none."""
    expected = json.loads(shared("golden", "step", "A_superpixels_meta.json").read_text())["images"][index]
    image = read_image(shared("realdata", "nuscenes2") / expected["file"])
    if hashlib.sha256(image.tobytes()).hexdigest() != expected["image_sha256"]:
        pytest.skip("this JPEG decoder gives other pixels")
    ids = compute(image, SuperpixelSettings())
    assert ids.dtype == np.int32 and ids.min() == 0
    digest = hashlib.sha256(ids.astype(np.uint8).tobytes()).hexdigest()
    assert digest == expected["label_sha256"]["superpixels_skimage0.26.0"]
    published = load(
        shared("golden", "step", "superpixels_skimage0.18.2", f"{expected['frame']}_{expected['cam']}.png"),
        image.shape[:2],
        expected["file"],
    )
    assert (ids == published).mean() == pytest.approx(expected["frac_pixels_equal"], abs=1e-9)


@pytest.mark.parametrize(
    "asked", [SMALL, SuperpixelSettings("felzenszwalb", sigma=0.35, scale=30.0, min_size=40)], ids=lambda s: s.kind
)
def test_superpixels_are_connected_and_keep_to_the_edges(asked):
    """A picture of 3 x 4 tiles: hardly a pixel lies in another tile than most of its superpixel."""
    y, x = np.mgrid[:40, :60]
    tile = y * 3 // 40 * 4 + x * 4 // 60
    image = np.random.default_rng(0).integers(0, 256, (12, 3), np.uint8)[tile]
    ids = compute(image, asked)
    assert ids.shape == (40, 60) and ids.dtype == np.int32
    np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
    assert label(ids + 1, connectivity=2).max() == ids.max() + 1  # as many components as ids
    majority = sum(np.bincount(tile[ids == i]).max() for i in range(ids.max() + 1))
    assert ids.max() + 1 >= 6 and majority > 0.9 * ids.size


def test_settings_decide():
    image = picture(1)
    few, many = (compute(image, SuperpixelSettings(segments=n, sigma=1.0)).max() for n in (5, 50))
    assert few < many
    felzenszwalb = SuperpixelSettings("felzenszwalb", sigma=0.35, scale=30.0, min_size=300)
    assert np.bincount(compute(image, felzenszwalb).ravel()).min() >= 300


def test_none_gives_every_pixel_its_own():
    ids = compute(picture(0, (5, 7)), SuperpixelSettings("none"))
    np.testing.assert_array_equal(ids, np.arange(35).reshape(5, 7))


@pytest.mark.parametrize("kind", ["slic", "slic_torch", "felzenszwalb", "none"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny_images(kind, size):
    ids = compute(picture(0, size), SuperpixelSettings(kind))
    assert ids.shape == size and ids.dtype == np.int32 and ids.min() == 0


# On disk


@settings(max_examples=40)
@given(
    ids=hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 65535)),
    top=st.sampled_from([0, 255, 256, 65535]),
)
def test_maps_come_back_as_they_were(tmp_path_factory, ids, top):
    ids = np.minimum(ids, top)
    ids[0, 0] = top
    path = map_path(tmp_path_factory.mktemp("maps"), SMALL, "token")
    save(path, ids)
    back = load(path, ids.shape, "image")
    assert back.dtype == (np.uint8 if top < 256 else np.uint16)
    np.testing.assert_array_equal(back, ids)
    with Image.open(path) as stored:
        assert stored.format == "PNG" and stored.mode == ("L" if top < 256 else "I;16")


def test_more_ids_than_a_png_holds(tmp_path):
    with pytest.raises(InputError, match="65537 superpixels do not fit"):
        save(tmp_path / "a.png", np.array([[65536]], np.int32))
    assert not any(tmp_path.iterdir())


def test_the_fields_layout(tmp_path):
    folder = tmp_path / "nuscenes"
    assert map_path(folder, SuperpixelSettings(), "e3d4") == folder / "superpixels_slic" / "e3d4.png"
    published = SuperpixelSettings("felzenszwalb", sigma=0.35)
    assert map_path(folder, published, "e3d4") == folder / "superpixels_felzenszwalb" / "e3d4.png"
    assert map_path(folder, SuperpixelSettings("slic_torch"), "e3d4") == folder / "superpixels_slic_torch" / "e3d4.png"


def test_maps_of_other_settings_lie_elsewhere(tmp_path):
    assert map_path(tmp_path, SuperpixelSettings(segments=100), "t").parent.name == "superpixels_slic_100_6_3"
    assert map_path(tmp_path, SMALL, "t").parent.name == "superpixels_slic_12_6_1"
    ours = SuperpixelSettings("slic_torch", segments=100, shrink=2)
    assert map_path(tmp_path, ours, "t").parent.name == "superpixels_slic_torch_100_6_3_shrink2"


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_maps_made_by_others_drop_in(tmp_path, mode):
    ids = np.array([[0, 1, 1], [1, 0, 1]])
    image = Image.fromarray(ids.astype({"1": bool, "I;16": np.uint16}.get(mode, np.uint8)))
    (image.convert("P") if mode == "P" else image).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == mode
    np.testing.assert_array_equal(load(tmp_path / "a.png", (2, 3), "image"), ids)


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda path: path.write_bytes(b"no image"), "cannot decode the superpixel map"),
        (lambda path: path.write_bytes(b""), "cannot decode the superpixel map"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot decode the superpixel map"),
        (lambda path: save(path, np.zeros((60, 40), np.int32)), "has 60 x 40 pixels, its image CAM t has 40 x 60"),
        (lambda path: Image.fromarray(picture(0)).save(path), "has 40 x 60 x 3 pixels"),
    ],
    ids=["text", "empty", "truncated", "turned", "colours"],
)
def test_maps_that_cannot_be_used(tmp_path, content, message):
    view = CameraView("CAM", "t", picture(0))
    load_or_compute(view, tmp_path, SMALL)
    path = map_path(tmp_path, SMALL, "t")
    content(path)
    with pytest.raises(InputError, match=message) as raised:
        load_or_compute(view, tmp_path, SMALL)
    assert str(path) in str(raised.value) and "remove it" in str(raised.value)


def test_a_map_is_made_once(tmp_path, monkeypatch):
    view = CameraView("CAM", "t", picture(0))
    made = load_or_compute(view, tmp_path, SMALL)
    np.testing.assert_array_equal(made, compute(view.image, SMALL))
    monkeypatch.setattr(superpixels, "compute", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(load_or_compute(view, tmp_path, SMALL), made)


@pytest.mark.parametrize("kind", ["slic", "slic_torch"])
def test_shrunk_maps_are_of_shrunk_images(tmp_path, kind):
    """Lengths count in pixels of the whole image, whichever the frame holds: the whole one or the shrunk one."""
    Image.fromarray(picture(0, (80, 121))).save(tmp_path / "a.png")
    asked = SuperpixelSettings(kind, segments=12, sigma=2.0, shrink=2)
    expected = compute(read_image(tmp_path / "a.png", 2), asked)
    np.testing.assert_array_equal(
        expected, compute(read_image(tmp_path / "a.png", 2), replace(asked, shrink=1, sigma=1))
    )
    for i, shrink in enumerate((1, 2)):
        ids = load_or_compute(read_view("CAM", f"t{i}", tmp_path / "a.png", shrink), tmp_path, asked)
        assert ids.shape == (40, 61)
        np.testing.assert_array_equal(ids, expected)


def test_none_is_not_stored(tmp_path):
    load_or_compute(CameraView("CAM", "t", picture(0)), tmp_path / "maps", SuperpixelSettings("none"))
    assert compute_all([("t", tmp_path / "no image")], tmp_path / "maps", SuperpixelSettings("none"), workers=0) == 0
    assert not (tmp_path / "maps").exists()


# All images of a data set


@pytest.fixture
def images(tmp_path):
    """Five image files, as a reader's `image_files` lists them."""
    files = [(f"token{i}", tmp_path / f"{i}.png") for i in range(5)]
    for i, (_, file) in enumerate(files):
        Image.fromarray(picture(i)).save(file)
    return files


@pytest.mark.parametrize("workers", [0, 2])
def test_all_maps_are_made_and_only_the_missing_ones(images, tmp_path, workers):
    kept = map_path(tmp_path, SMALL, "token3")
    save(kept, np.zeros((40, 60), np.int32))
    assert compute_all(images, tmp_path, SMALL, workers) == 4
    for i, (token, file) in enumerate(images):
        expected = np.zeros((40, 60)) if token == "token3" else compute(picture(i), SMALL)
        np.testing.assert_array_equal(load(map_path(tmp_path, SMALL, token), (40, 60), str(file)), expected)
    assert len(list(kept.parent.iterdir())) == 5  # nothing temporary is left
    before = {path: os.stat(path).st_mtime_ns for path in kept.parent.iterdir()}
    assert compute_all(images, tmp_path, SMALL, workers=0) == 0
    assert before == {path: os.stat(path).st_mtime_ns for path in kept.parent.iterdir()}


def test_a_stopped_run_goes_on_where_it_was(images, tmp_path, monkeypatch):
    done = []

    def compute_two(image, asked):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(image)
        return compute(image, asked)

    monkeypatch.setattr(superpixels, "compute", compute_two)
    with pytest.raises(KeyboardInterrupt):
        compute_all(images, tmp_path, SMALL, workers=0)
    monkeypatch.undo()
    assert compute_all(images, tmp_path, SMALL, workers=0) == 3


def test_a_killed_run_leaves_whole_maps_and_goes_on(images, tmp_path):
    """SIGKILL while the third map is half written: no cleaning up, yet only whole maps count as made."""
    pid = os.fork()
    if pid == 0:
        whole, written = Path.write_bytes, []

        def write_or_die(path, content):
            written.append(path)
            whole(path, content if len(written) < 3 else content[:40])
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = write_or_die
        try:
            compute_all(images, tmp_path, SMALL, workers=0)
        finally:
            os._exit(1)  # never back into pytest
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    maps = [map_path(tmp_path, SMALL, token) for token, _ in images]
    assert [path.exists() for path in maps] == [True, True, False, False, False]
    assert any(path.name.startswith(".") for path in maps[0].parent.iterdir())  # the half-written one
    assert compute_all(images, tmp_path, SMALL, workers=0) == 3
    for i, path in enumerate(maps):
        np.testing.assert_array_equal(load(path, (40, 60), "image"), compute(picture(i), SMALL))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode(images, tmp_path, workers):
    images[1][1].write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot decode the image") as raised:
        compute_all(images, tmp_path, SMALL, workers)
    assert str(images[1][1]) in str(raised.value)
    assert not map_path(tmp_path, SMALL, "token1").exists()


def test_progress_names_rate_and_kind(images, tmp_path, capsys):
    compute_all(images, tmp_path, SMALL, workers=0)
    err = capsys.readouterr().err
    assert "superpixels (slic)" in err and "5/5" in err and "image/s" in err
