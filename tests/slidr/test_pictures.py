"""Pictures show the numbers they were given, where they belong, and are written whole or not at all."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from data.datasets import nuscenes, semantic_kitti
from data.files import InputError
from data.frame import CameraView, Frame, Pairs
from slidr import pictures
from slidr.tasks.scores import Scores

CLASSES = ("ignored", "car", "road", "tree")
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)
SHOWN = pictures.visible(COLOURS)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """`drawn(picture, *arguments)` -> the axes of the figure behind the PNG that was written."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(picture, *arguments):
        path = tmp_path / "folder" / "picture.png"
        picture(*arguments, path)
        with Image.open(path) as image:
            assert image.format == "PNG" and 400 < image.width < 2000 and 200 < image.height < 1200
        assert list(path.parent.iterdir()) == [path]
        return figures[-1].axes

    return draw


@pytest.fixture
def frame():
    """Forty points, of which two cameras see some; superpixels are the left and the right half."""
    rng = np.random.default_rng(0)
    superpixels = np.repeat((np.arange(60) >= 30).astype(np.int32)[None], 40, axis=0)
    cameras = [CameraView(f"CAM_{c}", f"t{c}", np.full((40, 60, 3), 100, np.uint8), superpixels) for c in range(2)]
    pairs = Pairs(rng.permutation(40)[:25], np.arange(25) % 2, rng.integers(0, 40, 25), rng.integers(0, 60, 25))
    return Frame("f", rng.normal(scale=15, size=(40, 4)).astype(np.float32), cameras=cameras, pairs=pairs)


def titles(axes) -> list[str]:
    return [axis.get_title(loc="left") for axis in axes]


def test_camera_overlay(drawn, frame):
    axes = drawn(pictures.camera_overlay, frame, 1)
    assert titles(axes)[:2] == ["CAM_1: 2 superpixels", "12 lidar points by distance"]
    bordered = axes[0].images[0].get_array()
    border = (np.asarray(bordered) != 100).any(axis=2)
    assert border[:, 29:31].any(axis=1).all() and not border[:, :29].any() and not border[:, 31:].any()
    assert (np.asarray(axes[1].images[0].get_array()) == 100).all()  # points lie on the clean image
    dots = axes[1].collections[0]
    seen = frame.pairs.select(frame.pairs.camera == 1)
    np.testing.assert_array_equal(dots.get_offsets(), np.stack([seen.column, seen.row], 1))
    distance = np.linalg.norm(frame.points[seen.point, :3], axis=1)
    np.testing.assert_allclose(dots.get_array(), distance, rtol=1e-6)
    assert axes[2].get_ylabel() == "distance (m)"


def test_camera_overlay_without_points_or_superpixels(drawn, frame):
    frame.pairs, frame.cameras[0].superpixels = Pairs.empty(), None
    axes = drawn(pictures.camera_overlay, frame, 0)
    assert titles(axes)[:2] == ["CAM_0", "0 lidar points by distance"]
    assert (np.asarray(axes[0].images[0].get_array()) == 100).all()


def test_pixels_that_are_their_own_superpixels_have_no_borders(drawn, frame):
    frame.cameras[0].superpixels = np.arange(40 * 60, dtype=np.int32).reshape(40, 60)
    axes = drawn(pictures.camera_overlay, frame, 0)
    assert titles(axes)[0] == "CAM_0: 2,400 superpixels"
    assert (np.asarray(axes[0].images[0].get_array()) == 100).all()


@pytest.mark.parametrize("size", [(40, 60), (40, 200)])  # KITTI's images are wide
def test_similarity(drawn, frame, size):
    frame.cameras[0] = CameraView("CAM_0", "t0", np.zeros((*size, 3), np.uint8))
    values, pixels = np.random.default_rng(1).random(40), np.linspace(0, 1, 6).reshape(2, 3)
    queries = [frame.pairs.point[0], frame.pairs.point[1]]  # the second is the other camera's
    maps = [pictures.Similarity(query, f"query {query}", values, pixels) for query in queries]
    *axes, bar = drawn(pictures.similarity, frame, 0, maps)
    seen = frame.pairs.select(frame.pairs.camera == 0)
    order = np.argsort(values[seen.point])  # the most similar are drawn last
    for (left, right), query in zip((axes[:2], axes[2:]), queries, strict=True):
        assert titles((left, right)) == [f"image: query {query}", f"points: query {query}"]
        np.testing.assert_array_equal(left.images[0].get_array(), pixels)
        assert left.images[0].get_extent() == [-0.5, size[1] - 0.5, size[0] - 0.5, -0.5]  # of the image itself
        (dots,) = right.collections
        np.testing.assert_array_equal(dots.get_offsets(), np.stack([seen.column, seen.row], 1)[order])
        np.testing.assert_array_equal(dots.get_array(), values[seen.point[order]])
        for shown in (left.images[0], dots):
            assert shown.get_clim() == (0, 1) and shown.get_cmap().name == "viridis"
        for axis in (left, right):
            place = [[seen.column[0], seen.row[0]]] if query == queries[0] else np.zeros((0, 2))
            np.testing.assert_array_equal(axis.lines[0].get_xydata(), place)
            assert axis.lines[0].get_color() == "red"
    assert bar.get_ylabel() == "cosine similarity, 0 to 1"


def test_similarity_without_an_image_head(drawn, frame):
    maps = [pictures.Similarity(0, "q", np.zeros(40), None)]
    points, _ = drawn(pictures.similarity, frame, 0, maps)
    assert titles([points]) == ["points: q"]


def test_vector_formats_are_written_beside_the_png(tmp_path, frame):
    pictures.set_output("svg", 50)
    try:
        pictures.camera_overlay(frame, 0, tmp_path / "a.png")
    finally:
        pictures.set_output("png", 110)
    with Image.open(tmp_path / "a.png") as image:
        assert 600 < image.width < 660  # 12.6 inches
    assert "lidar points by distance" in (tmp_path / "a.svg").read_text() or "<text" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.svg").stat().st_size < 200_000  # points are pixels there


@pytest.mark.parametrize("record", [nuscenes.RECORD, semantic_kitti.RECORD], ids=lambda record: record.name)
def test_every_class_is_visible_on_its_background(record):
    def luminance(rgb):  # WCAG 2.2
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    shown = pictures.visible(record.colours)
    ground = luminance(np.array(pictures.GROUND) / 255)
    assert ((luminance(shown[1:]) + 0.05) / (ground + 0.05)).min() > 2.8
    bright = luminance(record.colours / 255) > 0.15
    np.testing.assert_allclose(shown[bright], record.colours[bright] / 255, atol=1e-6)


@pytest.mark.parametrize(("forward", "expected"), [((0, 1), [[1, 2]]), ((1, 0), [[-2, 1]])])  # nuScenes, KITTI
def test_the_heading_is_upwards(drawn, forward, expected):
    frame = Frame("f", POINTS[:1], LABELS[:1], forward=forward)
    axes = drawn(pictures.birds_eye, frame, PREDICTION[:1], CLASSES, COLOURS, "title")
    np.testing.assert_array_equal(axes[0].collections[1].get_offsets(), expected)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("right (m)", "ahead (m)")


def test_class_probabilities(drawn, frame):
    frame.cameras = frame.cameras[:1]
    frame.pairs = frame.pairs.select(frame.pairs.camera == 0)
    probability = np.zeros((40, 3))
    probability[0, 0] = probability[1, 1] = probability[2, 2] = 1
    above, camera = drawn(pictures.class_probabilities, frame, probability, ("a", "b", "c"), "title")
    dots = above.collections[0]
    assert len(dots.get_offsets()) == 40 and len(camera.collections[0].get_offsets()) == len(frame.pairs)
    last = {tuple(place): colour[:3] for place, colour in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)}
    for point, channel in ((0, 1), (1, 0), (2, 2)):  # green, red, blue
        x, y = frame.points[point, :2]
        assert last[(-y, x)].argmax() == channel
    grey = dots.get_facecolors()[0, :3]
    assert np.ptp(grey) == 0 and grey[0] > 0.2


def test_curves(drawn):
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 10, "loss": 2.0},
        {"step": 10, "val_loss": 3.0, "val_mIoU": 25.0, "val_iou/car": 9.0},
    ]
    loss, miou = drawn(lambda rows, path: pictures.curves(rows, path, "%"), rows)
    training, validation = loss.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 4], [10, 2]])
    np.testing.assert_array_equal(validation.get_xydata(), [[10, 3]])
    np.testing.assert_array_equal(miou.lines[0].get_xydata(), [[10, 25]])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert (loss.get_ylabel(), miou.get_ylabel(), miou.get_xlabel()) == ("loss", "mIoU (%)", "step")


def test_curves_of_a_run_without_scores(drawn):
    axes = drawn(pictures.curves, [{"step": 1, "loss": 4.0, "lr": 0.5}])
    assert len(axes) == 1 and len(axes[0].lines) == 1


POINTS = np.array([[1, 2, 5, 0], [3, 4, 0, 0], [5, 6, -1, 0], [7, 8, 1, 0]], np.float32)
PREDICTION, LABELS = np.array([1, 2, 2, 3]), np.array([1, 0, 1, 2])  # the second point has no label


def assert_legend(axis, names) -> None:
    colours = SHOWN[[CLASSES.index(name) for name in names]]
    (legend,) = axis.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    np.testing.assert_allclose([to_rgb(patch.get_facecolor()) for patch in legend.get_patches()], colours)


def test_birds_eye(drawn):
    frame = Frame("f", POINTS, LABELS, forward=(0, 1))
    axes = drawn(pictures.birds_eye, frame, PREDICTION, CLASSES, COLOURS, "frame f: mIoU 3 %")
    assert axes[0].figure.get_suptitle() == "frame f: mIoU 3 %, 90 m x 90 m"
    assert titles(axes) == ["prediction", "ground truth"]
    for axis, ids in zip(axes, (PREDICTION, LABELS), strict=True):
        grey, known = axis.collections
        np.testing.assert_array_equal(grey.get_offsets(), POINTS[[1], :2])
        np.testing.assert_array_equal(known.get_offsets(), POINTS[[2, 3, 0], :2])  # the highest last
        np.testing.assert_allclose(known.get_facecolors()[:, :3], SHOWN[ids[[2, 3, 0]]])
    assert_legend(axes[1], ["car", "road", "tree"])


@pytest.mark.parametrize("points", [0, 3])
def test_birds_eye_of_unlabelled_points(drawn, points):
    none = np.zeros(points, int)
    frame = Frame("f", np.ones((points, 4), np.float32), none)
    axes = drawn(pictures.birds_eye, frame, none, CLASSES, COLOURS, "f")
    assert len(axes[0].collections[0].get_offsets()) == points and len(axes[0].collections[1].get_offsets()) == 0


def test_birds_eye_of_a_split_without_labels(drawn):
    (axis,) = drawn(pictures.birds_eye, Frame("f", POINTS), PREDICTION, CLASSES, COLOURS, "f")
    assert axis.get_title(loc="left") == "prediction" and len(axis.collections[1].get_offsets()) == 4


def test_camera_classes(drawn):
    view = CameraView("CAM_FRONT", "t", np.full((90, 160, 3), 100, np.uint8))
    pairs = Pairs(
        np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]), np.array([10, 20, 30, 40]), np.array([50, 60, 70, 80])
    )
    frame = Frame("f", POINTS, LABELS, [view, view], pairs)
    axes = drawn(pictures.camera_classes, frame, PREDICTION, CLASSES, COLOURS, "f")
    assert titles(axes) == ["CAM_FRONT: prediction", "CAM_FRONT: ground truth"]
    for axis, ids in zip(axes, (PREDICTION, LABELS), strict=True):
        (dots,) = axis.collections  # point 1 has no label, point 3 is another camera's
        np.testing.assert_array_equal(dots.get_offsets(), [[70, 30], [50, 10]])  # the nearest last
        np.testing.assert_allclose(dots.get_facecolors()[:, :3], SHOWN[ids[[2, 0]]])
    assert_legend(axes[0], ["car", "road"])


def scores(value: float, spread: float | None = None, primary: str = "mIoU", **others: float) -> Scores:
    figures = others | {primary: value}
    return Scores(figures, primary, "IoU", spread={} if spread is None else {primary: spread})


def test_sweep(drawn):
    lines = {
        "random": {1: scores(10, 2), 10: scores(30)},
        "published: SLidR": {1: scores(39), 100: scores(74.6)},
    }
    (axis,) = drawn(pictures.sweep, lines)
    ours, published = axis.containers
    np.testing.assert_allclose(ours.lines[0].get_xydata(), [[1, 10], [10, 30]])
    np.testing.assert_allclose(published.lines[0].get_xydata(), [[1, 39], [100, 74.6]])
    (bars,) = ours.lines[2]
    np.testing.assert_allclose(bars.get_segments()[0], [[1, 8], [1, 12]])
    assert (ours.lines[0].get_linestyle(), published.lines[0].get_linestyle()) == ("-", "--")
    assert axis.get_xscale() == "log" and [t.get_text() for t in axis.get_xticklabels()] == ["1", "10", "100"]
    assert axis.get_ylabel() == "mIoU (%)"


def test_a_figure_of_which_less_is_better_says_so(drawn):
    lines = {"ours": {1.0: Scores({"RMSE": 2.0}, "RMSE", "RMSE", "m", "min")}}
    (axis,) = drawn(pictures.sweep, lines)
    assert axis.get_ylabel() == "RMSE (m, less is better)"


def test_bar_chart(drawn):
    columns = {
        "pretrained": scores(37.5, car=50.0, road=np.nan, tree=25.0),
        "random": scores(20, car=10.0, road=20.0, tree=30.0),
    }
    (axis,) = drawn(pictures.bar_chart, columns)
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    np.testing.assert_allclose(heights, [[50, np.nan, 25, 37.5], [10, 20, 30, 20]])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["car", "road", "tree", "mIoU"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["pretrained", "random"]
    assert axis.get_ylabel() == "IoU (%)"
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bars in axis.containers for bar in bars)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in zip(edges, edges[1:], strict=False))  # none hides one
    for bars in axis.containers:
        for bar, place in zip(bars, axis.get_xticks(), strict=True):
            assert abs(bar.get_x() + bar.get_width() / 2 - place) < 0.5


def test_bars_of_several_seeds_have_error_bars(drawn):
    columns = {"ours": scores(40, 2, car=50.0), "random": scores(20, car=10.0)}
    (axis,) = drawn(pictures.bar_chart, columns)
    ours, random = axis.containers[1], axis.containers[-1]
    (bars,) = ours.errorbar.lines[2]
    np.testing.assert_allclose(bars.get_segments()[-1][:, 1], [38, 42])
    assert random.errorbar is None


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        pictures.curves([{"step": 1, "loss": 1.0}], tmp_path / "file" / "curves.png")
