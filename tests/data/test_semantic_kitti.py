"""The SemanticKITTI reader against real frames and small hand-made roots; test_labels_splits.py has the histograms."""

import numpy as np
import pytest
from PIL import Image

from data.disk import InputError
from data.semantic_kitti import SemanticKitti

POINTS, HEIGHT, WIDTH = 7, 6, 8
# camera looks along the lidar's x axis: x_camera = -y, y_camera = -z, z_camera = x
CALIBRATION = "P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 4 0 4 0 0 4 3 0 0 0 1 0\nTr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"


def write_sequence(root, sequence, frames):
    """One sequence: points 0 to 6 m ahead, all labelled car; the camera moves 1 m along its z axis every frame."""
    folder = root / sequence
    for kind in ("velodyne", "labels", "image_2"):
        (folder / kind).mkdir(parents=True)
    points = np.zeros((POINTS, 4), np.float32)
    points[:, 0] = np.arange(POINTS)
    points[:, 3] = 0.5
    for frame in frames:
        points.tofile(folder / "velodyne" / f"{frame:06d}.bin")
        np.full(POINTS, 10 | 3 << 16, np.uint32).tofile(folder / "labels" / f"{frame:06d}.label")
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)).save(folder / "image_2" / f"{frame:06d}.png")
    (folder / "calib.txt").write_text(CALIBRATION)
    (folder / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {i}\n" for i in range(max(frames) + 1)))


@pytest.fixture
def world(tmp_path):
    """A root with two frames of the training sequences 00 and 02, one of 08 and one of 21."""
    root = tmp_path / "world"
    for sequence, frames in {"02": [0, 5], "00": [3, 1], "08": [4], "21": [0]}.items():
        write_sequence(root / "dataset" / "sequences", sequence, frames)
    return root


@pytest.fixture
def folder(world):
    """The folder of sequence 08."""
    return world / "dataset" / "sequences" / "08"


# Real frames


@pytest.fixture
def real(shared):
    return shared("realdata", "semantickitti33")


def test_agrees_with_the_published_codes_labels_and_features(real, shared):
    golden = np.load(shared("golden", "step", "E2_kitti08_000000.npz"))
    reader = SemanticKitti(real, "val")
    frame = reader.read(reader.ids.index("08_000000"), images=False)
    np.testing.assert_array_equal(frame.labels, golden["point_labels"])
    _, first = np.unique(golden["inverse"], return_index=True)  # the first point of each voxel
    np.testing.assert_array_equal(frame.points[first, 3:] + np.float32(reader.intensity_offset), golden["feats"])


def test_real_pairs_are_those_of_the_projection_matrix(real):
    reader = SemanticKitti(real, "all")
    assert len(reader) == 33
    for i in range(0, 33, 8):
        frame = reader.read(i, labels=False)
        lines = (real / "dataset" / "sequences" / reader.scenes[i] / "calib.txt").read_text().splitlines()
        calib = {line[:2]: np.array(line.split()[1:], float).reshape(3, 4) for line in lines if line}
        camera = (
            np.vstack([calib["Tr"], [0, 0, 0, 1]])
            @ np.column_stack([frame.points[:, :3], np.ones(len(frame.points))]).T
        )
        u, v, depth = calib["P2"] @ camera
        height, width = frame.cameras[0].image.shape[:2]
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = u / depth, v / depth
        seen = np.flatnonzero((depth > 1) & (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1))
        # float32 steps may move a point by a thousandth of a pixel, over an edge or over a half
        assert len(np.setxor1d(seen, frame.pairs.point)) <= 2
        assert len(seen) > 10_000
        error = np.abs([frame.pairs.column - u[frame.pairs.point], frame.pairs.row - v[frame.pairs.point]])
        assert error.max() < 0.501


def test_real_pairs_lie_on_what_the_image_shows(real):
    """Independent of all conventions: points labelled vegetation see greener pixels than points labelled road."""
    reader = SemanticKitti(real, "val")
    frame = reader.read(0)
    pixels = frame.cameras[0].image[frame.pairs.row, frame.pairs.column].astype(float)
    greenness = pixels[:, 1] - pixels[:, [0, 2]].mean(1)
    labels = frame.labels[frame.pairs.point]
    vegetation, road = (greenness[labels == reader.classes.index(name)].mean() for name in ("vegetation", "road"))
    assert vegetation > road + 3


def test_real_poses_move_the_static_world_onto_itself(real):
    """Pole and trunk points of a later frame come nearer to those of the first when the poses are used."""
    reader = SemanticKitti(real, "val")
    frames = [reader.read(i, images=False) for i in (0, 1)]  # 000000 and 000004, some 3 m apart
    classes = [reader.classes.index(name) for name in ("pole", "trunk", "traffic sign")]
    first, later = (f.points[np.isin(f.labels, classes), :3].astype(float) for f in frames)
    moved = later @ frames[1].pose[:3, :3].T + frames[1].pose[:3, 3]

    def median_distance(points):
        return np.median(np.sqrt(((points[::5, None] - first[None]) ** 2).sum(-1)).min(1))

    assert median_distance(moved) < 0.1  # metres
    assert median_distance(later) > 1


# Hand-made roots


def test_splits_ids_and_files(world):
    train = SemanticKitti(world, "train")
    assert train.ids == ["00_000001", "00_000003", "02_000000", "02_000005"]
    assert train.scenes == ["00", "00", "02", "02"] and len(train) == 4
    assert SemanticKitti(world, "val").ids == ["08_000004"]
    assert SemanticKitti(world, "test").ids == ["21_000000"]
    assert len(SemanticKitti(world, "all")) == 6
    sequences = world / "dataset" / "sequences"
    assert train.image_files()[1] == ("00_000003", sequences / "00" / "image_2" / "000003.png")
    assert SemanticKitti(world / "dataset", "all").image_files() == SemanticKitti(world, "all").image_files()


def test_read(world):
    frame = SemanticKitti(world, "val").read(0)
    assert frame.id == frame.cameras[0].token == "08_000004" and frame.cameras[0].name == "image_2"
    assert frame.points.shape == (POINTS, 4) and frame.points.dtype == np.float32 and frame.points[0, 3] == 0.5
    assert frame.labels.tolist() == [1] * POINTS and frame.labels.dtype == np.uint8
    assert frame.pairs.point.tolist() == [2, 3, 4, 5, 6] and set(frame.pairs.camera) == {0}
    assert set(frame.pairs.row) == {3} and set(frame.pairs.column) == {4}
    # 4 m along the camera's z axis are 4 m along the lidar's x axis
    np.testing.assert_allclose(frame.pose, [[1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


def test_read_only_what_is_asked_for(world, folder):
    (folder / "image_2" / "000004.png").unlink()
    frame = SemanticKitti(world, "val").read(0, images=False, labels=False)
    assert frame.labels is None and frame.cameras == [] and len(frame.pairs) == 0 and len(frame.points) == POINTS


def test_an_empty_scan_is_a_frame(world, folder):
    (folder / "velodyne" / "000004.bin").write_bytes(b"")
    (folder / "labels" / "000004.label").write_bytes(b"")
    frame = SemanticKitti(world, "val").read(0)
    assert frame.points.shape == (0, 4) and frame.labels.shape == (0,) and len(frame.pairs) == 0


def test_what_a_test_sequence_lacks(world, folder):
    for file in (folder / "labels").iterdir():
        file.unlink()
    (folder / "labels").rmdir()
    (folder / "poses.txt").unlink()
    frame = SemanticKitti(world, "val").read(0)
    assert frame.labels is None
    np.testing.assert_array_equal(frame.pose, np.eye(4))


# Bad input


def test_no_root(tmp_path, world):
    with pytest.raises(InputError, match="no SemanticKITTI at .*gone"):
        SemanticKitti(tmp_path / "gone", "train")
    with pytest.raises(InputError, match="holds neither `dataset/sequences` nor `sequences`"):
        SemanticKitti(tmp_path, "train")
    with pytest.raises(InputError, match="no split `nonsense`; its splits are train, val, test, all"):
        SemanticKitti(world, "nonsense")


def test_a_split_without_scans(world, folder):
    (folder / "velodyne" / "000004.bin").unlink()
    with pytest.raises(InputError, match="no scan .* of the split `val`, which is the sequences 08"):
        SemanticKitti(world, "val")


@pytest.mark.parametrize("key", ["P2", "Tr"])
@pytest.mark.parametrize("row", ["", "{}: 1 2 3\n", "{}: a b\n", "{}: nan 0 0 0 0 1 0 0 0 0 1 0\n"])
def test_broken_calibration(world, folder, key, row):
    lines = [line for line in CALIBRATION.splitlines(keepends=True) if not line.startswith(key)]
    (folder / "calib.txt").write_text("".join(lines) + row.format(key))
    with pytest.raises(InputError, match=rf"calib.txt.*`{key}`|`{key}`.*calib.txt"):
        SemanticKitti(world, "val")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("calib.txt", None, "cannot read .*08/calib.txt"),
        ("poses.txt", b"1 0 0 0 0 1 0 0 0 0 1 0\n", "poses.txt has 1 poses, none for frame 000004"),
        ("poses.txt", b"", "poses.txt has 0 poses"),
        ("poses.txt", b"1 0 0 0 0 1 0 0 0 0 1 0\n1 2\n", "line 2 of .*poses.txt is not twelve"),
        ("velodyne/000004.bin", b"x" * 31, "000004.bin is truncated: 31 bytes"),
        ("velodyne/000004.bin", b"\xff" * 32, "000004.bin has NaN or infinity in 2 of its 2 points"),
        ("labels/000004.label", b"\x0a\x00\x00\x00" * 6, "000004.label has 6 entries for a scan of 7 points"),
        ("labels/000004.label", b"\x02\x00\x00\x00" * 7, "000004.label has the label 2,"),
        ("labels/000004.label", None, "cannot read .*000004.label"),
        ("image_2/000004.png", b"no image", "cannot decode the image .*000004.png"),
        ("image_2/000004.png", None, "cannot decode the image .*000004.png"),
    ],
)
def test_broken_files(world, folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        SemanticKitti(world, "val").read(0)
    assert "\n" not in str(error.value)
