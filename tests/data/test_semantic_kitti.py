"""The SemanticKITTI reader against real frames and small hand-made roots; test_datasets.py has the histograms."""

import json

import numpy as np
import pytest
from PIL import Image

from data.datasets.dataset import ReadOptions
from data.datasets.semantic_kitti import SemanticKitti
from data.files import InputError
from data.frame import Needs

ALL = Needs(cameras="all", pose=True, labels=True)
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
    frame = reader.read(reader.ids.index("08_000000"), Needs(labels=True, pose=True))
    np.testing.assert_array_equal(frame.labels, golden["point_labels"])
    _, first = np.unique(golden["inverse"], return_index=True)  # the first point of each voxel
    np.testing.assert_array_equal(frame.points[first, 3:] + np.float32(reader.intensity_offset), golden["feats"])


def test_real_pairs_are_those_of_the_projection_matrix(real):
    reader = SemanticKitti(real, "all")
    assert len(reader) == 33
    for i in range(0, 33, 8):
        frame = reader.read(i, Needs(cameras="all", pose=True))
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
    frame = reader.read(0, ALL)
    pixels = frame.cameras[0].image[frame.pairs.row, frame.pairs.column].astype(float)
    greenness = pixels[:, 1] - pixels[:, [0, 2]].mean(1)
    labels, classes = frame.labels[frame.pairs.point], reader.dataset.classes
    vegetation, road = (greenness[labels == classes.index(name)].mean() for name in ("vegetation", "road"))
    assert vegetation > road + 3


def test_real_poses_move_the_static_world_onto_itself(real):
    """Pole and trunk points of a later frame come nearer to those of the first when the poses are used."""
    reader = SemanticKitti(real, "val")
    frames = [reader.read(i, Needs(labels=True, pose=True)) for i in (0, 1)]  # 000000 and 000004, some 3 m apart
    classes = [reader.dataset.classes.index(name) for name in ("pole", "trunk", "traffic sign")]
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
    frame = SemanticKitti(world, "val").read(0, ALL)
    assert frame.id == frame.cameras[0].token == "08_000004" and frame.cameras[0].name == "image_2"
    assert frame.points.shape == (POINTS, 4) and frame.points.dtype == np.float32 and frame.points[0, 3] == 0.5
    assert frame.labels.tolist() == [1] * POINTS and frame.labels.dtype == np.uint8
    assert frame.pairs.point.tolist() == [2, 3, 4, 5, 6] and set(frame.pairs.camera) == {0}
    assert set(frame.pairs.row) == {3} and set(frame.pairs.column) == {4}
    # 4 m along the camera's z axis are 4 m along the lidar's x axis
    np.testing.assert_allclose(frame.pose, [[1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


def test_read_only_what_is_asked_for(world, folder):
    (folder / "image_2" / "000004.png").unlink()
    frame = SemanticKitti(world, "val").read(0, Needs())
    assert frame.labels is None and frame.cameras == [] and len(frame.pairs) == 0 and len(frame.points) == POINTS


def test_an_empty_scan_is_a_frame(world, folder):
    (folder / "velodyne" / "000004.bin").write_bytes(b"")
    (folder / "labels" / "000004.label").write_bytes(b"")
    frame = SemanticKitti(world, "val").read(0, ALL)
    assert frame.points.shape == (0, 4) and frame.labels.shape == (0,) and len(frame.pairs) == 0


def test_what_a_test_sequence_lacks(world, folder):
    for file in (folder / "labels").iterdir():
        file.unlink()
    (folder / "labels").rmdir()
    assert SemanticKitti(world, "val").read(0, ALL).labels is None


@pytest.mark.parametrize(
    ("needs", "files"),
    [
        (Needs(), []),
        (Needs(labels=True), ["labels/000004.label"]),
        (Needs(pose=True), ["calib.txt", "poses.txt"]),
        (Needs(cameras=1), ["calib.txt", "image_2/000004.png"]),
        (ALL, ["labels/000004.label", "calib.txt", "poses.txt", "image_2/000004.png"]),
    ],
)
def test_no_other_file_is_opened(world, folder, opened, needs, files):
    reader = SemanticKitti(world, "val")
    assert not opened
    frame = reader.read(0, needs)
    assert opened == {folder / name for name in ["velodyne/000004.bin", *files]}
    assert (frame.labels is not None, frame.pose is not None) == (needs.labels, needs.pose)
    assert bool(frame.cameras) == bool(len(frame.pairs)) == bool(needs.cameras)
    opened.clear()
    reader.read(0, needs)
    assert opened == {folder / name for name in ["velodyne/000004.bin", *files] if not name.endswith("txt")}


def test_scans_and_labels_are_enough_where_nothing_else_is_needed(world, folder):
    for name in ("calib.txt", "poses.txt", "image_2/000004.png"):
        (folder / name).unlink()
    (folder / "image_2").rmdir()
    reader = SemanticKitti(world, "val")
    frame = reader.read(0, Needs(labels=True))
    assert frame.labels.tolist() == [1] * POINTS and frame.pose is None
    for needs, name in ((Needs(cameras="all"), "calib.txt"), (Needs(pose=True), "poses.txt")):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            reader.read(0, needs)


def test_a_calibration_without_tr(world, folder):
    """As it comes with the images of KITTI odometry."""
    (folder / "calib.txt").write_text("".join(CALIBRATION.splitlines(keepends=True)[:-1]))
    reader = SemanticKitti(world, "val")
    assert len(reader.read(0, Needs(labels=True)).labels) == POINTS
    for needs in (Needs(cameras=1), Needs(pose=True)):
        with pytest.raises(InputError, match="calib.txt has no `Tr`, which images and poses need"):
            reader.read(0, needs)


def test_fewer_poses_than_scans(world):
    poses = world / "dataset" / "sequences" / "00" / "poses.txt"
    poses.write_text("".join(poses.read_text().splitlines(keepends=True)[:2]))
    reader = SemanticKitti(world, "train")
    assert reader.ids[:2] == ["00_000001", "00_000003"]
    assert reader.read(0, Needs(pose=True)).pose.shape == (4, 4)
    assert len(reader.read(1, Needs(cameras="all", labels=True)).cameras) == 1
    with pytest.raises(InputError, match="poses.txt has 2 poses, none for frame 000003"):
        reader.read(1, Needs(pose=True))


# Cameras, columns, names


@pytest.fixture
def two_cameras(folder):
    """Sequence 08 with an image_3 whose principal point lies one column to the right, and whose image is brighter."""
    (folder / "image_3").mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 255, np.uint8)).save(folder / "image_3" / "000004.png")
    (folder / "calib.txt").write_text(CALIBRATION + "P3: 4 0 5 0 0 4 3 0 0 0 1 0\n")
    return folder


def test_both_colour_cameras(world, two_cameras):
    reader = SemanticKitti(world, "val", ReadOptions(cameras=("image_3", "image_2")))
    frame = reader.read(0, ALL)
    assert [(view.name, view.token) for view in frame.cameras] == [
        ("image_3", "08_000004_image_3"),
        ("image_2", frame.id),
    ]
    assert [view.image.mean() for view in frame.cameras] == [255, 128]
    assert frame.pairs.camera.tolist() == [0] * 5 + [1] * 5 and frame.pairs.column.tolist() == [5] * 5 + [4] * 5
    assert reader.image_files() == [(view.token, two_cameras / view.name / "000004.png") for view in frame.cameras]
    assert [view.name for view in SemanticKitti(world, "val").read(0, ALL).cameras] == ["image_2"]


def test_one_camera_is_drawn(world, two_cameras):
    reader = SemanticKitti(world, "val", ReadOptions(cameras=("image_2", "image_3")))
    seen = set()
    for seed in range(20):
        frame = reader.read(0, Needs(cameras=1), np.random.default_rng(seed))
        (view,) = frame.cameras
        assert frame.pairs.camera.tolist() == [0] * 5
        assert frame.pairs.column.tolist() == [4 + (view.name == "image_3")] * 5
        seen.add(view.name)
    assert seen == {"image_2", "image_3"} and reader.read(0, Needs(cameras=1)).cameras[0].name == "image_2"


def test_a_camera_that_does_not_exist(world):
    with pytest.raises(
        InputError, match="the cameras image_2, image_9 cannot be read: .* has image_0, image_1, image_2"
    ):
        SemanticKitti(world, "val", ReadOptions(cameras=("image_2", "image_9")))


def test_another_number_of_columns(world, folder):
    points = np.arange(6 * POINTS, dtype=np.float32).reshape(POINTS, 6)
    points.tofile(folder / "velodyne" / "000004.bin")
    reader = SemanticKitti(world, "val", ReadOptions(columns=6, intensity_scale=1 / 255))
    np.testing.assert_array_equal(reader.read(0, Needs()).points, points[:, :4])
    assert (reader.intensity_scale, reader.intensity_offset) == (1 / 255, 1.0)


@pytest.mark.parametrize("columns", [5, 6])
def test_rows_of_another_length_give_themselves_away(real, world, folder, columns):
    """A length that happens to divide: twenty times as many numbers as the layout's rows have."""
    scan = np.fromfile(real / "dataset/sequences/08/velodyne/000000.bin", np.float32).reshape(-1, 4)[: 4 * 5 * 6 * 100]
    wide = np.zeros((len(scan), columns), np.float32)
    wide[:, :4] = scan
    wide.tofile(folder / "velodyne" / "000004.bin")
    with pytest.raises(InputError, match="000004.bin does not seem to have 4 columns"):
        SemanticKitti(world, "val").read(0, Needs())
    np.testing.assert_array_equal(
        SemanticKitti(world, "val", ReadOptions(columns=columns)).read(0, Needs()).points, scan
    )


@pytest.mark.parametrize("place", [".", "dataset"])
def test_own_splits_go_first(world, place):
    sequences = world / "dataset" / "sequences"
    (sequences / "21").rename(sequences / "drive_5")
    own = {"mine": ["drive_5", "02"], "train": ["08"]}
    (world / place / "splits.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(own).encode())
    reader = SemanticKitti(world, "mine")
    assert reader.ids == ["02_000000", "02_000005", "drive_5_000000"]
    assert reader.read(2, ALL).id == "drive_5_000000" and reader.scenes[2] == "drive_5"
    assert SemanticKitti(world, "train").scenes == ["08"]
    assert SemanticKitti(world, "val").scenes == ["08"]
    with pytest.raises(InputError, match="no split `nonsense`; its splits are train, val, test, all, mine"):
        SemanticKitti(world, "nonsense")


def test_a_sequence_of_an_own_split_that_is_not_there(world):
    (world / "splits.json").write_text('{"mine": ["00", "O2", "../../secret"], "other": ["00"]}')
    with pytest.raises(InputError, match="splits.json names O2, ../../secret in its split `mine`"):
        SemanticKitti(world, "mine")
    assert len(SemanticKitti(world, "other")) == 2


@pytest.mark.parametrize("content", ["[]", '{"mine": "00"}', '{"mine": [1]}', "{"])
def test_broken_own_splits(world, content):
    (world / "splits.json").write_text(content)
    with pytest.raises(InputError, match="splits.json"):
        SemanticKitti(world, "mine")


def test_byte_order_marks(world, folder):
    for name in ("calib.txt", "poses.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert SemanticKitti(world, "val").read(0, ALL).pose[0, 3] == 4


def test_scans_of_ten_digits(world, folder):
    for file in folder.glob("*/000004.*"):
        file.rename(file.with_name(f"0000{file.name}"))
    reader = SemanticKitti(world, "val")
    frame = reader.read(0, ALL)
    assert frame.id == "08_0000000004" and frame.pose[0, 3] == 4 and len(frame.cameras) == 1


def test_scans_with_other_names(world, folder):
    (folder / "velodyne" / "000004.bin").rename(folder / "velodyne" / "4.bin")
    with pytest.raises(InputError, match="08/velodyne/4.bin is not named like a scan, six or ten digits"):
        SemanticKitti(world, "val")
    assert len(SemanticKitti(world, "train")) == 4


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
    reader = SemanticKitti(world, "val")
    with pytest.raises(InputError, match=rf"calib.txt.*`{key}`|`{key}`.*calib.txt"):
        reader.read(0, Needs(cameras="all"))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("calib.txt", None, "cannot read .*08/calib.txt"),
        ("poses.txt", b"1 0 0 0 0 1 0 0 0 0 1 0\n", "poses.txt has 1 poses, none for frame 000004"),
        ("poses.txt", b"", "poses.txt has 0 poses"),
        ("poses.txt", None, "cannot read .*08/poses.txt"),
        ("poses.txt", b"1 0 0 0 0 1 0 0 0 0 1 0\n1 2\n", "line 2 of .*poses.txt is not twelve"),
        ("velodyne/000004.bin", b"x" * 31, "000004.bin is truncated: 31 bytes"),
        ("velodyne/000004.bin", b"\xff" * 32, "000004.bin has NaN or infinity in 2 of its 2 points"),
        ("labels/000004.label", b"\x0a\x00\x00\x00" * 6, "000004.label has 6 entries for a scan of 7 points"),
        ("labels/000004.label", b"\x02\x00\x00\x00" * 7, "000004.label has the label 2,"),
        ("labels/000004.label", None, "cannot read .*000004.label"),
        ("image_2/000004.png", b"no image", "cannot decode the image .*000004.png"),
        ("image_2/000004.png", None, "cannot read .*000004.png"),
    ],
)
def test_broken_files(world, folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        SemanticKitti(world, "val").read(0, ALL)
    assert "\n" not in str(error.value)
