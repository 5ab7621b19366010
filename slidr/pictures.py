"""Everything that is drawn, for people: no chart without a label, no file half-written.

Scans are seen from above with the vehicle's heading upwards, whatever the axes of their data set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from skimage.segmentation import find_boundaries

from data.files import atomic_write
from data.frame import Frame
from data.samples.scans import ScanPair
from slidr.tasks.scores import Scores

METRES = 45  # a picture from above shows this far in each direction
EXTENT = f"{2 * METRES} m x {2 * METRES} m"
GROUND = 17, 20, 24  # RGB behind scans from above
COSINE = 0.0, 1.0  # similarity maps: one range, so that those of epochs and networks compare

# class -> its colour in maps of nearest neighbours, in their order: green, red, blue
MIXED = np.array([[0.15, 0.95, 0.2], [1.0, 0.15, 0.1], [0.2, 0.4, 1.0]])


def set_output(format: str, dpi: int) -> None:
    """What pictures are written as from now on: PNG at `dpi`, and, for "pdf" or "svg", that as well beside it."""
    matplotlib.rcParams.update({"savefig.format": format, "savefig.dpi": dpi})


set_output("png", 110)


@contextmanager
def drawing(path: Path, rows: int, columns: int, size: tuple[float, float], title: str = "", **options) -> Iterator:
    """Axes `[rows, columns]`; saved to `path`, a PNG, at the end, and beside it as `set_output` says."""
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no global state, no display
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    yield figure.subplots(rows, columns, squeeze=False, **options)
    for format in dict.fromkeys(("png", matplotlib.rcParams["savefig.format"])):
        with atomic_write(path.with_suffix(f".{format}")) as temporary:
            figure.savefig(temporary, format=format)


def show(axis, image: np.ndarray, title: str, **style) -> None:
    """An image `[h, w, 3]` or `[h, w]` fills the axes, in pixels."""
    axis.imshow(image, **style)
    axis.set(xticks=[], yticks=[], autoscale_on=False)
    axis.set_title(title, loc="left", fontsize=10)


def grey(image: np.ndarray, brightness: float) -> np.ndarray:
    """An image `[h, w, 3]` uint8 without its colours, darker by `brightness`: floats in 0..1."""
    return np.repeat(image.mean(2, keepdims=True), 3, 2) / 255 * brightness


def _dot(points: int) -> float:
    """Marker area in square points: a few thousand stay apart, a few hundred are seen."""
    return float(np.clip(9000 / max(points, 1), 2, 12))


def scatter(axis, places: np.ndarray, **style):
    """Dots at `places [N, 2]`; pixels in vector formats, too, where the text stays text."""
    return axis.scatter(*np.transpose(places), linewidths=0, rasterized=True, **style)


def above(frame: Frame, points: np.ndarray | None = None) -> np.ndarray:
    """Metres to the right of the vehicle and ahead of it, `[N, 2]`, of the frame's points or of others in its axes."""
    x, y = (frame.points if points is None else points)[:, :2].T
    ahead_x, ahead_y = frame.forward
    return np.stack((ahead_y * x - ahead_x * y, ahead_x * x + ahead_y * y), 1)


def ground(axis, title: str, lidars=((0.0, 0.0),), names=("right (m)", "ahead (m)")) -> None:
    """Axes in metres for a scan from above, with triangles at `lidars`."""
    ticks = np.arange(-40, 41, 20)
    axis.set(xlim=(-METRES, METRES), ylim=(-METRES, METRES), aspect="equal", xticks=ticks, yticks=ticks)
    axis.set(xlabel=names[0], ylabel=names[1], facecolor=np.array(GROUND) / 255)
    axis.tick_params(labelsize=8)
    axis.set_title(title, loc="left", fontsize=10)
    axis.plot(*np.transpose(lidars), marker="^", color="white", markersize=5, linestyle="none")


def visible(colours: np.ndarray) -> np.ndarray:
    """Class colours `[K, 3]` uint8 RGB as floats in 0..1, the dark ones mixed with white until `GROUND` lets them show.

    Their contrast with it is at least 2.8 then, by relative luminance (WCAG 2).
    """
    white = np.linspace(0, 1, 101)[:, None, None]
    mixed = white + (1 - white) * colours / 255
    enough = mixed**2.2 @ (0.2126, 0.7152, 0.0722) > 0.12
    return mixed[enough.argmax(0), np.arange(len(colours))]


def camera_overlay(frame: Frame, camera: int, path: Path) -> None:
    """Camera `camera` of `frame` as read: its superpixels' borders, and its paired points coloured by distance."""
    view = frame.cameras[camera]
    seen = frame.pairs.select(frame.pairs.camera == camera)
    distance = np.linalg.norm(frame.points[seen.point, :3], axis=1)
    bordered, title = view.image.copy(), view.name
    if view.superpixels is not None:
        count = len(np.unique(view.superpixels[view.superpixels >= 0]))
        title += f": {count:,} superpixels"
        places = zip(view.image.shape, view.superpixels.shape, strict=False)
        rows, columns = (np.arange(whole) * stored // whole for whole, stored in places)  # a map may be shrunk
        if count < view.superpixels.size:  # else every pixel is a border
            bordered[find_boundaries(view.superpixels[np.ix_(rows, columns)], mode="inner")] = (255, 220, 0)
    height = 6 * view.image.shape[0] / view.image.shape[1]
    with drawing(path, 1, 2, (12.6, height + 0.7), f"frame {frame.id}") as axes:
        show(axes[0, 0], bordered, title)
        show(axes[0, 1], view.image, f"{len(seen):,} lidar points by distance")
        style = {"cmap": "turbo_r", "vmin": 0, "vmax": 50}
        dots = scatter(axes[0, 1], np.stack((seen.column, seen.row), 1), c=distance, s=_dot(len(seen)), **style)
        axes[0, 1].figure.colorbar(dots, ax=axes[0, 1], label="distance (m)", shrink=0.9, extend="max")


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity to the feature of one point of a frame.

    query: the point's row.
    name: how it was chosen.
    points: `[N]` of every point's feature.
    pixels: `[h, w]` of the camera image's features, whatever its size; None = the network has no image head.
    """

    query: int
    name: str
    points: np.ndarray
    pixels: np.ndarray | None


def similarity(frame: Frame, camera: int, maps: list[Similarity], path: Path) -> None:
    """Similarity maps as in the supplement, Fig. 4 and 5: a row a query, the image's left, the points' right.

    Violet to yellow is `COSINE`; the red dot is the query, if the camera sees it. Without pixels the right half alone.
    """
    view = frame.cameras[camera]
    rows, columns = view.size
    seen = frame.pairs.select(frame.pairs.camera == camera)
    style = {"cmap": "viridis", "vmin": COSINE[0], "vmax": COSINE[1]}
    halves = 1 + (maps[0].pixels is not None)
    height = 6.5 * rows / columns + 0.35
    size = 6.5 * halves + 1, height * len(maps) + 0.35
    with drawing(path, len(maps), halves, size, f"frame {frame.id}, {view.name}") as axes:
        for found, axis in zip(maps, axes, strict=True):
            here = seen.point == found.query
            show(axis[-1], grey(view.image, 0.35), f"points: {found.name}")
            order = np.argsort(found.points[seen.point])  # the most similar hide the others
            places = np.stack((seen.column, seen.row), 1)[order]
            colour = found.points[seen.point[order]]
            dots = scatter(axis[-1], places, c=colour, s=1.5 * _dot(len(seen)), **style)
            if halves == 2:
                show(
                    axis[0],
                    found.pixels,
                    f"image: {found.name}",
                    extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
                    **style,
                )
            for one in axis:
                one.plot(seen.column[here], seen.row[here], "o", color="red", markeredgecolor="white", markersize=8)
        label = f"cosine similarity, {COSINE[0]:g} to {COSINE[1]:g}"
        axes[0, 0].figure.colorbar(dots, ax=axes, label=label, shrink=0.9, extend="min")


def views(clouds: dict[str, np.ndarray], path: Path) -> None:
    """Views of one scan side by side from above, coloured by height.

    Args:
        clouds: name -> points `[N, 3 or more]`.
        path: PNG to write.
    """
    with drawing(path, 1, len(clouds), (4.4 * len(clouds) + 0.8, 4.7)) as axes:
        for axis, (name, points) in zip(axes[0], clouds.items(), strict=True):
            ground(axis, f"{name}: {len(points):,} points", names=("x (m)", "y (m)"))
            points = points[np.argsort(points[:, 2])]  # what is higher hides what is lower
            style = {"cmap": "viridis", "vmin": -2, "vmax": 4}
            dots = scatter(axis, points[:, :2], c=points[:, 2], s=_dot(len(points)) / 2, **style)
        axes[0, 0].figure.colorbar(dots, ax=axes[0, -1], label="height (m)", shrink=0.9, extend="both")


def scan_pair(pair: ScanPair, cosine: np.ndarray, path: Path) -> None:
    """Two registered scans from above, and their matches coloured by how similar the features of both points are.

    Args:
        pair: scans with poses, and their M matches.
        cosine: `[M]` of each match.
        path: PNG to write.
    """
    to_first = np.linalg.inv(pair.first.pose) @ pair.second.pose
    first = above(pair.first)
    second = above(pair.first, pair.second.points[:, :3] @ to_first[:3, :3].T + to_first[:3, 3])
    lidars = above(pair.first, np.stack([np.zeros(3), to_first[:3, 3]]))
    middle = lidars.mean(0)
    with drawing(path, 1, 2, (13, 6), f"frames {pair.first.id} and {pair.second.id}, {EXTENT}") as axes:
        apart = np.linalg.norm(to_first[:3, 3])
        ground(axes[0, 0], f"two scans, {apart:.1f} m apart", lidars - middle)
        ground(axes[0, 1], f"their {len(cosine):,} matches", lidars - middle)
        for name, points, colour in (("first", first, "#4fa3ff"), ("second", second, "#ff9e3d")):
            scatter(axes[0, 0], points - middle, s=0.8, c=colour, label=name)
        axes[0, 0].legend(frameon=False, labelcolor="white", markerscale=6, loc="upper right")
        order = np.argsort(-cosine)  # the least similar hide the others
        places = first[pair.matches[order, 0]] - middle
        style = {"cmap": "RdYlGn", "vmin": 0, "vmax": 1}
        dots = scatter(axes[0, 1], places, c=cosine[order], s=1.5, **style)
        axes[0, 1].figure.colorbar(dots, ax=axes[0, 1], label="cosine of the features", shrink=0.9, extend="min")


def curves(rows: list[dict], path: Path, unit: str = "") -> None:
    """Losses, and the figure that validation gives beside them, if any, over the steps of metrics.jsonl's `rows`.

    Args:
        unit: of that figure.
    """
    panels = {"loss": ("loss", "val_loss")}
    found = dict.fromkeys(n for row in rows for n in row if n.startswith("val_") and n != "val_loss" and "/" not in n)
    panels |= {f"{name.removeprefix('val_')}{f' ({unit})' if unit else ''}": (name,) for name in found}
    labels = {"loss": "training"}
    with drawing(path, 1, len(panels), (5.5 * len(panels), 3.6)) as axes:
        for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
            for name in names:
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    steps, values = np.array(points, dtype=float).T
                    marker = "o" if name.startswith("val") else None
                    axis.plot(steps, values, marker=marker, ms=4, label=labels.get(name, "validation"))
            axis.set(xlabel="step", ylabel=title)
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
            axis.spines[["top", "right"]].set_visible(False)


def _panels(frame: Frame, prediction: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Title -> train ids `[N]`, and the mask `[N]` of points to colour: those with a label, all if there are none."""
    if frame.labels is None:
        return {"prediction": prediction}, np.ones(len(prediction), bool)
    return {"prediction": prediction, "ground truth": frame.labels}, frame.labels > 0


def _occurring(panels: dict[str, np.ndarray], known: np.ndarray) -> np.ndarray:
    """Train ids above 0 in the panels' points of a mask."""
    ids = np.unique(np.concatenate([ids[known] for ids in panels.values()]))
    return ids[ids > 0]


def class_legend(figure: Figure, occurring: np.ndarray, classes: tuple[str, ...], colours: np.ndarray) -> None:
    """Names of the classes that occur, by their rows, beside the axes."""
    handles = [Patch(color=visible(colours)[i], label=classes[i]) for i in occurring]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)


def birds_eye(
    frame: Frame, prediction: np.ndarray, classes: tuple[str, ...], colours: np.ndarray, title: str, path: Path
) -> None:
    """Prediction next to ground truth, where there is one, from above.

    Args:
        frame: points and labels; points without a label (0) are grey.
        prediction: `[N]` train ids.
        classes, colours: names and RGB uint8 `[K, 3]` by train id; colours are shown as `visible` has them.
        title: of the frame.
        path: PNG to write.
    """
    panels, known = _panels(frame, prediction)
    order = np.argsort(frame.points[:, 2])  # what is higher hides what is lower
    places, seen, colours_shown = above(frame)[order], known[order], visible(colours)
    with drawing(path, 1, len(panels), (6.25 * len(panels), 5.8), f"{title}, {EXTENT}") as axes:
        for axis, (name, ids) in zip(axes[0], panels.items(), strict=True):
            ground(axis, name)
            scatter(axis, places[~seen], s=0.6, c="#3a3f46")
            scatter(axis, places[seen], s=3, c=colours_shown[ids[order][seen]])
        class_legend(axes[0, 0].figure, _occurring(panels, known), classes, colours)


def camera_classes(
    frame: Frame, prediction: np.ndarray, classes: tuple[str, ...], colours: np.ndarray, title: str, path: Path
) -> None:
    """Prediction above ground truth, where there is one, in the first camera; arguments as those of `birds_eye`.

    Points without a label are left out.
    """
    panels, known = _panels(frame, prediction)
    view, pairs = frame.cameras[0], frame.pairs.select(frame.pairs.camera == 0)
    pairs = pairs.select(known[pairs.point])
    pairs = pairs.select(np.argsort(-np.linalg.norm(frame.points[pairs.point, :3], axis=1)))  # near hides far
    height = 7 * view.image.shape[0] / view.image.shape[1] + 0.35
    seen = np.zeros_like(known)
    seen[pairs.point] = True
    with drawing(path, len(panels), 1, (9, height * len(panels) + 0.3), title) as axes:
        for axis, (name, ids) in zip(axes[:, 0], panels.items(), strict=True):
            show(axis, grey(view.image, 0.35), f"{view.name}: {name}")
            colour = visible(colours)[ids[pairs.point]]
            scatter(axis, np.stack((pairs.column, pairs.row), 1), c=colour, s=_dot(len(pairs)))
        class_legend(axes[0, 0].figure, _occurring(panels, seen), classes, colours)


def class_probabilities(
    frame: Frame, probability: np.ndarray, classes: tuple[str, ...], title: str, path: Path
) -> None:
    """Probabilities of up to three classes as green, red and blue, mixed: from above, and in the first camera, if any.

    Args:
        probability: `[N, K]` in 0..1.
        classes: their K names.
        title: of the frame.
        path: PNG to write.
    """
    most = probability.max(1, initial=0)
    colour = np.clip(probability @ MIXED[: len(classes)] + 0.27 * (1 - most[:, None]), 0, 1)
    order = np.argsort(most, kind="stable")  # what is found hides the rest
    shape = frame.cameras[0].image.shape if frame.cameras else (0, 1)
    wide = 9 if shape[1] < 2 * shape[0] else 12
    options = {"width_ratios": (5, wide)} if frame.cameras else {}
    with drawing(
        path, 1, 1 + len(frame.cameras), (5 + wide * len(frame.cameras), 5.6), f"{title}, {EXTENT}", **options
    ) as axes:
        ground(axes[0, 0], "from above")
        scatter(axes[0, 0], above(frame)[order], c=colour[order], s=2.5)
        for axis, view in zip(axes[0, 1:], frame.cameras, strict=True):
            show(axis, grey(view.image, 0.4), view.name)
            pairs = frame.pairs.select(np.argsort(most[frame.pairs.point], kind="stable"))
            places = np.stack((pairs.column, pairs.row), 1)
            scatter(axis, places, c=colour[pairs.point], s=1.5 * _dot(len(pairs)))
        handles = [Patch(color=c, label=name) for c, name in zip(MIXED, classes, strict=False)]
        axes[0, 0].figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=len(classes))


def sweep(lines: dict[str, dict[float, Scores]], path: Path) -> None:
    """Annotation efficiency: the primary figure over the share of labels, logarithmic; published lines are dashed.

    Args:
        lines: name -> per cent of the labels -> scores, with deviations where there are seeds; a name that starts with
            "published" is dashed.
        path: PNG to write.
    """
    with drawing(path, 1, 1, (8.5, 4.2)) as axes:
        axis = axes[0, 0]
        for name, line in lines.items():
            theirs = name.startswith("published")
            style = {"ls": "--", "alpha": 0.7, "mfc": "none", "ms": 8} if theirs else {"capsize": 3, "ms": 4}
            value, deviation = np.array([(scores.value, scores.deviation) for scores in line.values()]).T
            axis.errorbar(list(line), value, deviation, marker="o", label=name, **style)
            label = next(iter(line.values())).label
        ticks = sorted({pct for line in lines.values() for pct in line})
        axis.set(xscale="log", xlabel="labels of the training split (%)", ylabel=label)
        axis.set_xticks(ticks, [f"{pct:g}" for pct in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.figure.legend(loc="outside right center", frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)


def bar_chart(columns: dict[str, Scores], path: Path) -> None:
    """Every figure and, set apart, the primary one: a bar a network, none where there is no value.

    Error bars are standard deviations over seeds, where there are any.

    Args:
        columns: network name -> scores of one kind.
        path: PNG to write.
    """
    first, *_ = columns.values()
    names = [*(name for name in first.figures if name != first.primary), first.primary]
    places = np.append(np.arange(len(names) - 1), len(names) - 0.5)
    width = 0.8 / len(columns)
    with drawing(path, 1, 1, (10, 4)) as axes:
        axis = axes[0, 0]
        for i, (label, scores) in enumerate(columns.items()):
            values, spread = ([part.get(name, np.nan) for name in names] for part in (scores.figures, scores.spread))
            style = {"yerr": spread, "error_kw": {"elinewidth": 1, "capsize": 2}} if scores.spread else {}
            axis.bar(places + (i - (len(columns) - 1) / 2) * width, values, width, label=label, **style)
        axis.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set(ylabel=f"{first.measure} ({first.unit})", axisbelow=True)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(columns))
        axis.spines[["top", "right"]].set_visible(False)
