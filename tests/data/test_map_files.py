"""Superpixel maps of segmentation models: every form that they come in, found by name, imported as maps of our own."""

import io
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.files import InputError
from data.frame import read_view
from data.map_files import import_all, read_map
from data.superpixels import SuperpixelSettings, load, load_or_compute, map_path, require_maps

SAM = SuperpixelSettings("sam")
SIZE = 5, 7


def ids_up_to(most: int, seed: int = 0) -> np.ndarray:
    """Random ids `[5, 7]`, 0 and `most` among them."""
    ids = np.random.default_rng(seed).integers(0, most + 1, SIZE)
    ids[0, 0], ids[4, 6] = 0, most
    return ids


def write(path: Path, ids: np.ndarray, form: str) -> None:
    """A map as segmentation models leave it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)
    if form in ("8 bits", "palette"):
        image = Image.fromarray(ids.astype(np.uint8))
        if form == "palette":
            image.putpalette([*range(255, -1, -1)] * 3)
        image.save(path)
    elif form == "16 bits":
        Image.fromarray(ids.astype(np.uint16)).save(path)
    elif form == "colours":
        Image.fromarray(colours).save(path)
    elif form == "colours and opacity":
        Image.fromarray(np.concatenate((colours, 99 + colours[..., :1]), 2)).save(path)
    elif form == "npz":
        np.savez(path, anything=ids.astype(np.uint16))
    elif form == "npz of several":
        np.savez_compressed(path, scores=np.zeros(3), ids=np.asfortranarray(ids))


FORMS = {
    "8 bits": ("png", 255),
    "palette": ("png", 255),
    "16 bits": ("png", 65535),
    "colours": ("png", 65535),
    "colours and opacity": ("png", 2**24 - 1),
    "npz": ("npz", 65535),
    "npz of several": ("npz", 10**12),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_ids(tmp_path, form):
    suffix, most = FORMS[form]
    path, ids = tmp_path / f"a.{suffix}", ids_up_to(most)
    write(path, ids, form)
    np.testing.assert_array_equal(read_map(path, SIZE), ids)


@pytest.fixture
def images(tmp_path) -> list[tuple[str, Path]]:
    """Two cameras' images of one name."""
    files = [(f"token{camera}", tmp_path / "data" / camera / "0001.v2.png") for camera in ("L", "R")]
    for _, file in files:
        file.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(file)
    return files


def imported(images, tmp_path, settings=SAM, shard=slice(None)) -> tuple[int, int]:
    return import_all(images, tmp_path / "theirs", tmp_path / "ours", settings, shard, workers=0)


@pytest.mark.parametrize("names", [("tokenL.png", "tokenR.npz"), ("L/0001.v2.npz", "data/R/0001.v2.png")])
def test_maps_are_found_by_token_or_by_the_end_of_the_path(images, tmp_path, names):
    maps = [ids_up_to(300, seed) for seed in range(2)]
    for name, ids in zip(names, maps, strict=True):
        write(tmp_path / "theirs" / name, ids, "16 bits" if name.endswith("png") else "npz")
    assert imported(images, tmp_path) == (2, 0)
    for camera, (token, file), ids in zip("LR", images, maps, strict=True):
        view = read_view(camera, token, file)
        np.testing.assert_array_equal(load_or_compute(view, tmp_path / "ours", SAM), ids)
        none = load_or_compute(view, tmp_path / "ours", replace(SAM, zero="none"))
        assert none.dtype == np.int32  # 0 becomes -1, which is no superpixel
        np.testing.assert_array_equal(none, ids - 1)


def test_a_name_that_two_images_share_is_no_ones(images, tmp_path):
    write(tmp_path / "theirs" / "0001.v2.png", ids_up_to(9), "8 bits")
    with pytest.raises(InputError, match=r"no map of the image .*tokenL.png is missing, and so are tokenL.npz, L/0001"):
        imported(images, tmp_path)
    assert imported(images[:1], tmp_path) == (1, 0)


def test_a_share_of_the_images(images, tmp_path):
    write(tmp_path / "theirs" / "tokenR.png", ids_up_to(9), "8 bits")
    assert imported(images, tmp_path, shard=slice(1, None, 2)) == (1, 0)
    assert [path.name for path in (tmp_path / "ours/superpixels_sam").iterdir()] == ["tokenR.png"]


def test_more_ids_than_16_bits_are_renumbered(images, tmp_path):
    """In their order, 0 staying 0, whether there is one or not; not where cameras share them."""
    ids = ids_up_to(2**24 - 1)
    without_zero = np.where(ids == 0, ids.max(), ids)
    write(tmp_path / "theirs/tokenL.png", ids, "colours")
    write(tmp_path / "theirs/tokenR.png", without_zero, "colours")
    assert imported(images, tmp_path) == (2, 2)
    values = np.unique(ids).tolist()
    for token, theirs in (("tokenL", ids), ("tokenR", without_zero)):
        stored = load(map_path(tmp_path / "ours", SAM, token), SIZE, "image")
        np.testing.assert_array_equal(stored, [[values.index(i) for i in row] for row in theirs])
    with pytest.raises(InputError, match=r"has the id 16777215, and ids that cameras share .* number them from 0 to 6"):
        imported(images, tmp_path, replace(SAM, ids="frame"))


def test_importing_again_replaces(images, tmp_path):
    for seed in range(2):
        write(tmp_path / "theirs/tokenL.png", ids_up_to(9, seed), "8 bits")
        assert imported(images[:1], tmp_path) == (1, 0)
    path = map_path(tmp_path / "ours", SAM, "tokenL")
    np.testing.assert_array_equal(load(path, SIZE, "image"), ids_up_to(9, 1))


def test_maps_of_shrunk_images(images, tmp_path):
    settings = replace(SAM, shrink=2)
    write(tmp_path / "theirs/tokenL.png", ids_up_to(9)[:3, :4], "8 bits")
    assert imported(images[:1], tmp_path, settings) == (1, 0)
    view = read_view("L", *images[0])
    np.testing.assert_array_equal(load_or_compute(view, tmp_path / "ours", settings), ids_up_to(9)[:3, :4])


def test_an_imported_map_is_of_its_image(images, tmp_path):
    write(tmp_path / "theirs/tokenL.png", ids_up_to(9), "8 bits")
    imported(images[:1], tmp_path)
    Image.new("RGB", SIZE[::-1]).save(images[0][1])
    with pytest.raises(InputError, match="superpixels_sam/tokenL.png is missing, or of another image.* --maps FOLDER"):
        load_or_compute(read_view("L", *images[0]), tmp_path / "ours", SAM)
    with pytest.raises(InputError, match="there is no folder .*superpixels_seem, and only slic, slic_torch"):
        require_maps(tmp_path / "ours", SuperpixelSettings("seem"))
    require_maps(tmp_path / "ours", SAM)
    require_maps(tmp_path / "nowhere", SuperpixelSettings())


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"no image", "cannot read the superpixel map .*export it again"),
        ("a.npz", b"no archive", "cannot read the superpixel map"),
        ("a.npz", archive(), "it holds nothing: call its map `ids`"),
        ("a.npz", archive(a=array(ids_up_to(9)), b=b""), "it holds a.npy, b.npy: call its map `ids`"),
        ("a.npz", archive(a=array(ids_up_to(9) / 2)), "it holds float64, no integers"),
        ("a.npz", archive(a=array(ids_up_to(9).astype(object))[:200]), "it holds object, no integers"),
        ("a.npz", archive(a=array(ids_up_to(9))[:-1]), "cannot read the superpixel map"),
        ("a.npz", archive(a=array(ids_up_to(9)) + bytes(10**6)), "cannot read the superpixel map"),
        ("a.npz", archive(a=array(ids_up_to(9)).replace(b"(5, 7)", b"(5,-7)")), "superpixel map"),
        ("a.npz", archive(a=array(ids_up_to(9).T)), "has 7 x 5 pixels, its image needs 5 x 7"),
        ("a.npz", archive(a=array(ids_up_to(9)[..., None])), "has 5 x 7 x 1 pixels"),
        ("a.npz", archive(a=array(ids_up_to(9) - 3)), "has the id -3; add 3 to all of its ids"),
        ("a.npz", archive(a=array(ids_up_to(9)))[:-30], "cannot read the superpixel map"),
    ],
)
def test_maps_that_cannot_be_used(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        read_map(tmp_path / name, SIZE)
    assert str(tmp_path / name) in str(raised.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["8 bits", "colours", "npz of several"])
def test_a_damaged_map_is_read_or_refused(tmp_path, form):
    path, chance = tmp_path / f"a.{FORMS[form][0]}", random.Random(0)
    write(path, ids_up_to(255), form)
    raw, refused = path.read_bytes(), 0
    for _ in range(150):
        at = chance.randrange(len(raw))
        path.write_bytes(raw[:at] + chance.randbytes(chance.choice((0, 1, 4))) + raw[at + chance.choice((1, 4, 99)) :])
        try:
            assert read_map(path, SIZE).shape == SIZE
        except InputError:
            refused += 1
    assert refused > 50


def test_a_jpeg_is_no_map(tmp_path):
    Image.new("L", SIZE[::-1]).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match="a JPEG file, which blurs ids"):
        read_map(tmp_path / "a.png", SIZE)
