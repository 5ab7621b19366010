"""Everything that is drawn, for people: no chart without a label, no file half-written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from skimage.segmentation import find_boundaries

from data.files import atomic_write
from data.frame import Frame
from data.samples.scans import ScanPair
from slidr.tasks.scores import Scores

METRES = 45  # a picture from above shows this far in each direction


@contextmanager
def _figure(path: Path, rows: int, columns: int, size: tuple[float, float], **options) -> Iterator:
    """Axes `[rows, columns]`; saved to `path` at the end."""
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no global state, no display
    yield figure.subplots(rows, columns, squeeze=False, **options)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _image(axis, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set(xlim=(0, image.shape[1] - 1), ylim=(image.shape[0] - 1, 0), xticks=[], yticks=[])
    axis.set_title(title, loc="left", fontsize=10)


def _dot(points: int) -> float:
    """Marker area in square points: a few thousand stay apart, a few hundred are seen."""
    return float(np.clip(9000 / max(points, 1), 2, 12))


def _ground(axis, title: str, lidars=((0.0, 0.0),)) -> None:
    axis.set(xlim=(-METRES, METRES), ylim=(-METRES, METRES), aspect="equal", xticks=[], yticks=[], facecolor="#111418")
    axis.set_title(title, loc="left", fontsize=10)
    axis.plot(*np.transpose(lidars), marker="^", color="white", markersize=5, linestyle="none")


def camera_overlay(frame: Frame, camera: int, path: Path) -> None:
    """Camera `camera` of `frame` as read: its superpixels' borders, and its paired points coloured by distance."""
    view = frame.cameras[camera]
    seen = frame.pairs.select(frame.pairs.camera == camera)
    distance = np.linalg.norm(frame.points[seen.point, :3], axis=1)
    bordered, title = view.image.copy(), view.name
    if view.superpixels is not None:
        count = len(np.unique(view.superpixels))
        title += f": {count:,} superpixels"
        if count < view.superpixels.size:  # else every pixel is a border
            bordered[find_boundaries(view.superpixels, mode="inner")] = (255, 220, 0)
    height = 6 * view.image.shape[0] / view.image.shape[1]
    with _figure(path, 1, 2, (12.6, height + 0.4)) as axes:
        _image(axes[0, 0], bordered, title)
        _image(axes[0, 1], view.image, f"{len(seen):,} lidar points by distance")
        style = {"cmap": "turbo_r", "vmin": 0, "vmax": 50, "linewidths": 0}
        dots = axes[0, 1].scatter(seen.column, seen.row, c=distance, s=_dot(len(seen)), **style)
        axes[0, 1].figure.colorbar(dots, ax=axes[0, 1], label="distance (m)", shrink=0.9, extend="max")


def similarity(frame: Frame, camera: int, query: int, values: np.ndarray, path: Path) -> None:
    """Cosine similarity `values [N]` of every point's feature to that of point `query`: in the image and from above."""
    view = frame.cameras[camera]
    seen = frame.pairs.select(frame.pairs.camera == camera)
    here = seen.point == query
    image_height = 7 * view.image.shape[0] / view.image.shape[1]
    height = max(image_height, 3.5)  # the view from above is square
    low, high = np.quantile(values, (0.02, 0.98))
    style = {"cmap": "coolwarm", "vmin": low, "vmax": high, "linewidths": 0}
    with _figure(path, 1, 2, (8 + height, height + 0.5), width_ratios=(7, height)) as axes:
        grey = np.repeat(view.image.mean(2, keepdims=True), 3, 2) / 255 * 0.6
        _image(axes[0, 0], grey, "similarity of each point's feature to the one at the cross")
        axes[0, 0].scatter(seen.column, seen.row, c=values[seen.point], s=1.5 * _dot(len(seen)), **style)
        _ground(axes[0, 1], "the whole scan from above")
        order = np.argsort(values)  # the most similar hide the others
        dots = axes[0, 1].scatter(*frame.points[order, :2].T, c=values[order], s=1.5, **style)
        cross = {"marker": "x", "color": "yellow", "markersize": 12, "markeredgewidth": 3}
        axes[0, 0].plot(seen.column[here], seen.row[here], **cross)
        axes[0, 1].plot(*frame.points[query, :2], **cross)
        axes[0, 1].figure.colorbar(dots, ax=axes[0, 1], label="cosine", shrink=0.9, extend="both")


def views(clouds: dict[str, np.ndarray], path: Path) -> None:
    """Views of one scan side by side from above, coloured by height.

    Args:
        clouds: name -> points `[N, 3 or more]`.
        path: PNG to write.
    """
    with _figure(path, 1, len(clouds), (4.4 * len(clouds) + 0.8, 4.7)) as axes:
        for axis, (name, points) in zip(axes[0], clouds.items(), strict=True):
            _ground(axis, f"{name}: {len(points):,} points")
            points = points[np.argsort(points[:, 2])]  # what is higher hides what is lower
            style = {"cmap": "viridis", "vmin": -2, "vmax": 4, "linewidths": 0}
            dots = axis.scatter(*points[:, :2].T, c=points[:, 2], s=_dot(len(points)) / 2, **style)
        axes[0, 0].figure.colorbar(dots, ax=axes[0, -1], label="height (m)", shrink=0.9, extend="both")


def scan_pair(pair: ScanPair, cosine: np.ndarray, path: Path) -> None:
    """Two registered scans from above, and their matches coloured by how similar the features of both points are.

    Args:
        pair: scans with poses, and their M matches.
        cosine: `[M]` of each match.
        path: PNG to write.
    """
    to_first = np.linalg.inv(pair.first.pose) @ pair.second.pose
    first = pair.first.points[:, :2]
    second = (pair.second.points[:, :3] @ to_first[:3, :3].T + to_first[:3, 3])[:, :2]
    lidars = np.stack([np.zeros(2), to_first[:2, 3]])
    middle = lidars.mean(0)
    with _figure(path, 1, 2, (13, 5.8)) as axes:
        apart = np.linalg.norm(to_first[:3, 3])
        _ground(axes[0, 0], f"two scans, {apart:.1f} m apart", lidars - middle)
        _ground(axes[0, 1], f"their {len(cosine):,} matches", lidars - middle)
        for name, points, colour in (("first", first, "#4fa3ff"), ("second", second, "#ff9e3d")):
            axes[0, 0].scatter(*(points - middle).T, s=0.8, c=colour, linewidths=0, label=name)
        axes[0, 0].legend(frameon=False, labelcolor="white", markerscale=6, loc="upper right")
        order = np.argsort(-cosine)  # the least similar hide the others
        places = first[pair.matches[order, 0]] - middle
        style = {"cmap": "RdYlGn", "vmin": 0, "vmax": 1, "linewidths": 0}
        dots = axes[0, 1].scatter(*places.T, c=cosine[order], s=1.5, **style)
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
    with _figure(path, 1, len(panels), (5.5 * len(panels), 3.6)) as axes:
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


def _class_legend(
    figure: Figure, panels: dict[str, np.ndarray], known: np.ndarray, classes: tuple[str, ...], colours
) -> None:
    """Names of the classes that occur, beside the axes."""
    occurring = [i for i in np.unique(np.concatenate([ids[known] for ids in panels.values()])) if i]
    handles = [Patch(color=colours[i] / 255, label=classes[i]) for i in occurring]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)


def birds_eye(frame: Frame, prediction: np.ndarray, classes: tuple[str, ...], colours: np.ndarray, path: Path) -> None:
    """Prediction next to ground truth, where there is one, from above.

    Args:
        frame: points and labels; points without a label (0) are grey.
        prediction: `[N]` train ids.
        classes, colours: names and RGB uint8 `[K, 3]` by train id.
        path: PNG to write.
    """
    panels, known = _panels(frame, prediction)
    order = np.argsort(frame.points[:, 2])  # what is higher hides what is lower
    points, seen = frame.points[order], known[order]
    with _figure(path, 1, len(panels), (6.25 * len(panels), 5.6)) as axes:
        for axis, (title, ids) in zip(axes[0], panels.items(), strict=True):
            _ground(axis, title)
            axis.scatter(*points[~seen, :2].T, s=0.6, c="#3a3f46", linewidths=0)
            axis.scatter(*points[seen, :2].T, s=3, c=colours[ids[order][seen]] / 255, linewidths=0)
        _class_legend(axes[0, 0].figure, panels, known, classes, colours)


def camera_classes(
    frame: Frame, prediction: np.ndarray, classes: tuple[str, ...], colours: np.ndarray, path: Path
) -> None:
    """Prediction above ground truth, where there is one, in the first camera; arguments as those of `birds_eye`.

    Points without a label are left out.
    """
    panels, known = _panels(frame, prediction)
    view, pairs = frame.cameras[0], frame.pairs.select(frame.pairs.camera == 0)
    pairs = pairs.select(known[pairs.point])
    pairs = pairs.select(np.argsort(-np.linalg.norm(frame.points[pairs.point, :3], axis=1)))  # near hides far
    grey = np.repeat(view.image.mean(2, keepdims=True), 3, 2) / 255 * 0.5
    height = 7 * view.image.shape[0] / view.image.shape[1] + 0.35
    seen = np.zeros_like(known)
    seen[pairs.point] = True
    with _figure(path, len(panels), 1, (9, height * len(panels))) as axes:
        for axis, (title, ids) in zip(axes[:, 0], panels.items(), strict=True):
            _image(axis, grey, f"{view.name}: {title}")
            colour = colours[ids[pairs.point]] / 255
            axis.scatter(pairs.column, pairs.row, c=colour, s=_dot(len(pairs)), linewidths=0)
        _class_legend(axes[0, 0].figure, panels, seen, classes, colours)


def sweep(lines: dict[str, dict[float, Scores]], path: Path) -> None:
    """Annotation efficiency: the primary figure over the share of labels, logarithmic; published lines are dashed.

    Args:
        lines: name -> per cent of the labels -> scores, with deviations where there are seeds; a name that starts with
            "published" is dashed.
        path: PNG to write.
    """
    with _figure(path, 1, 1, (6.5, 4.2)) as axes:
        axis = axes[0, 0]
        for name, line in lines.items():
            style = {"ls": "--", "alpha": 0.6} if name.startswith("published") else {"capsize": 3}
            value, deviation = np.array([(scores.value, scores.deviation) for scores in line.values()]).T
            axis.errorbar(list(line), value, deviation, marker="o", ms=4, label=name, **style)
            label = next(iter(line.values())).label
        ticks = sorted({pct for line in lines.values() for pct in line})
        axis.set(xscale="log", xlabel="labels of the training split (%)", ylabel=label)
        axis.set_xticks(ticks, [f"{pct:g}" for pct in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)


def bar_chart(columns: dict[str, Scores], path: Path) -> None:
    """Every figure and, set apart, the primary one: a bar a network, none where there is no value.

    Args:
        columns: network name -> scores of one kind.
        path: PNG to write.
    """
    first, *_ = columns.values()
    names = [*(name for name in first.figures if name != first.primary), first.primary]
    places = np.append(np.arange(len(names) - 1), len(names) - 0.5)
    width = 0.8 / len(columns)
    with _figure(path, 1, 1, (10, 4)) as axes:
        axis = axes[0, 0]
        for i, (label, scores) in enumerate(columns.items()):
            values = np.array([scores.figures[name] for name in names])
            axis.bar(places + (i - (len(columns) - 1) / 2) * width, values, width, label=label)
        axis.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set(ylabel=f"{first.measure} ({first.unit})", axisbelow=True)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(columns))
        axis.spines[["top", "right"]].set_visible(False)
