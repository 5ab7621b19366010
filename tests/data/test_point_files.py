"""Anybody's scans: every format gives the same points, and a file that is not what it says gets a sentence."""

import numpy as np
import pypcd4
import pytest

from data.files import InputError
from data.point_files import find_scans, read_scan

POINTS = np.random.default_rng(0).uniform(1, 50, (7, 4)).astype(np.float32)
HEADER = (
    "ply\nformat {}\ncomment by hand\nelement vertex 7\n{}element face 1\nproperty list uchar int corners\nend_header\n"
)
PROPERTIES = (
    "property float x\nproperty double y\nproperty float z\nproperty uchar red\nproperty float scalar_Intensity\n"
)


def write_pcd(path, encoding):
    cloud = pypcd4.PointCloud.from_xyzi_points(POINTS)
    cloud.save(path, encoding=pypcd4.Encoding(encoding))


def write_ply(path, encoding):
    header = HEADER.format(f"{encoding} 1.0", PROPERTIES).encode()
    if encoding == "ascii":
        rows = "".join(f"{x:.9g} {y:.9g} {z:.9g} 9 {i:.9g}\n" for x, y, z, i in POINTS)
        return path.write_bytes(header + rows.encode() + b"3 0 1 2\n")
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
    table = np.zeros(
        7, [("x", order + "f4"), ("y", order + "f8"), ("z", order + "f4"), ("r", "u1"), ("i", order + "f4")]
    )
    for k, name in enumerate("xyzi"):
        table[name] = POINTS[:, k]
    path.write_bytes(header + table.tobytes() + bytes(13))


WRITERS = {
    "a.bin": lambda path: POINTS.tofile(path),
    "a.npy": lambda path: np.save(path, np.c_[POINTS, POINTS].astype(np.float64)),
    "a.npz": lambda path: np.savez_compressed(path, points=POINTS),
} | {
    f"{encoding}.{kind}": lambda path, write=write, encoding=encoding: write(path, encoding)
    for kind, write, encodings in (
        ("pcd", write_pcd, ("ascii", "binary", "binary_compressed")),
        ("ply", write_ply, ("ascii", "binary_little_endian", "binary_big_endian")),
    )
    for encoding in encodings
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_points_in_their_order(tmp_path, name):
    WRITERS[name](tmp_path / name)
    np.testing.assert_allclose(read_scan(tmp_path / name), POINTS, rtol=1e-6)
    np.testing.assert_allclose(read_scan(tmp_path / name, intensity_scale=0.5)[:, 3], POINTS[:, 3] / 2, rtol=1e-6)


def test_other_columns_of_a_bin(tmp_path):
    np.c_[POINTS, POINTS[:, :1]].tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.bin", columns=5), POINTS)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_file_that_is_not_what_it_says_gets_a_sentence(tmp_path, name, damage):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: 2 * len(whole) // 3 + 1], "other": b"\x89PNG\r\n\x1a\n" + bytes(7), "empty": b""}[damage]
    )
    if name == "a.bin" and damage == "empty":
        return  # a scan of no points
    with pytest.raises(InputError, match=name):
        read_scan(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.ply", HEADER.format("ascii 1.0", "property float x\n") + "1\n" * 7, "intensity are needed"),
        ("b.ply", "ply\nformat ascii 1.0\nelement face 3\nelement vertex 1\nend_header\n", "no vertex"),
        (
            "c.ply",
            "ply\nformat binary_little_endian 1.0\nelement vertex -1\nproperty float x\nend_header\nabcd",
            "non-negative",
        ),
        ("d.ply", "ply\nformat ascii 1.0\nelement vertex\nend_header\n", "index"),
    ],
)
def test_headers_that_promise_something_else(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        read_scan(tmp_path / name)


def test_a_pickle_is_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object))
    with pytest.raises(InputError, match=r"a\.npy cannot be read"):
        read_scan(tmp_path / "a.npy")


def test_scans_are_found_in_files_and_folders(tmp_path):
    for name in ("b/2.bin", "b/1.PLY", "b/c/3.npy", "b/3.npy.head.npy", "b/notes.txt", "a.pcd"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = find_scans((tmp_path / "b", tmp_path / "a.pcd"), but=(".head.npy",))
    assert [str(inside) for _, inside in found] == ["1.PLY", "2.bin", "c/3.npy", "a.pcd"]
    for place, says in (("nowhere", "is not there"), ("b/notes.txt", "is no scan"), ("b/c", "holds no scan")):
        with pytest.raises(InputError, match=says):
            find_scans((tmp_path / place,), but=(".npy",))
