"""Classes from example images: what the teacher sees in pictures of a class, found again in points (after IGLOSS).

The recipe: features of the patches of a few images a class, L2-normalised; balanced logistic regression on them; its
weights applied to the points' L2-normalised features, which pretraining put into the same space.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data.datasets.dataset import Reader
from data.files import InputError, open_file, printable, require_intact
from data.frame import Needs
from data.images import read_image
from data.progress import Progress
from data.samples import Notes, without_unmeasured
from slidr import inference
from slidr.networks.model_file import Layers, point_channels
from slidr.teachers import Teacher
from slidr.tensor_files import as_weights, read_tensors

LEAST = 2  # examples of a class
PATCHES = 256  # of an image: those between them tell little else (ViT-L/14 on 224 x 224 pixels has 16 x 16)
PIECE = 6  # a piece's side is its image's shorter side divided by this
MAJORITY = 0.5  # of a piece's labelled points have its class
NEVER = torch.finfo(torch.float32).min  # logit of a class without examples


def read_folder(folder: Path, classes: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """Class -> images `[H, W, 3]` uint8 of `folder/<class>/*`; hidden files are left out.

    Raises InputError for a folder without classes, a name that is none of `classes` (train id 0 is none), a class of
    fewer than two images, and a file that is no image.
    """
    found = {}
    for place in _visible(folder):
        _require_class(place, place.name, classes)
        if not place.is_dir():
            raise InputError(f"{place} is a file; the examples of a class are images in a folder of its name.")
        files = _visible(place)
        if len(files) < LEAST:
            raise InputError(f"{place} holds {len(files)} of at least {LEAST} images; add some or remove the folder.")
        found[place.name] = [read_image(file) for file in files]
    return _require_classes(folder, found)


def read_embeddings(path: Path, classes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Class -> the teacher's features `[n, C]` float32 from an .npz or .safetensors file with an array a class.

    Raises InputError for a file that holds something else.
    """
    if path.suffix == ".npz":
        try:
            with open_file(path) as file:
                require_intact(file)
                file.seek(0)
                stored = np.load(file, allow_pickle=False)
                arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        except InputError:
            raise
        except Exception as error:  # zipfile's and NumPy's ways to say "broken"
            raise InputError(f"{path} cannot be read as .npz ({type(error).__name__}); write it again.") from error
    else:
        arrays = read_tensors(path)
    for name, rows in arrays.items():
        _require_class(path, name, classes)
        if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) < LEAST:
            raise InputError(f"{path}: `{name}` is no array [n, C] of at least {LEAST} rows; write it again.")
    return _require_classes(path, as_weights(path, arrays))


def cut_examples(
    reader: Reader, cells: Callable[[np.ndarray], torch.Tensor], per_class: int, frames: int, seed: int
) -> dict[str, list[torch.Tensor]]:
    """Class -> features `[n, C]` of square pieces of a labelled split's images, most of whose points have the class.

    They are cut out of the features of the whole image, with which pretraining compares points. A piece enlarged on its
    own has other features.

    Args:
        reader: the split; of it so many `frames` are read, in an order drawn by the seed.
        cells: image `[H, W, 3]` uint8 -> features of its cells `[C, h, w]`.
        per_class: most pieces of a class. A class with fewer than two has none.

    Raises InputError if fewer than two classes are left.
    """
    classes, rng = reader.dataset.classes, np.random.default_rng(seed)
    found = {name: [] for name in classes[1:]}
    order = rng.permutation(len(reader))[:frames]
    for index in Progress(order, desc="examples", leave=False, delay=5):
        frame = without_unmeasured(reader.read(int(index), Needs(cameras="all", labels=True)), Notes())
        if frame.labels is None:
            continue
        for camera, view in enumerate(frame.cameras):
            seen = frame.pairs.select(frame.pairs.camera == camera)
            labels, places = frame.labels[seen.point], np.stack((seen.row, seen.column), 1)
            side, features = max(1, min(view.size) // PIECE), None
            for label in np.unique(labels[labels > 0]):
                centre = places[rng.choice(np.flatnonzero(labels == label))]
                corner = np.clip(centre - side // 2, 0, np.array(view.size) - side)
                inside = labels[((places >= corner) & (places < corner + side)).all(1) & (labels > 0)]
                pieces = found[classes[label]]
                if len(pieces) < per_class and (inside == label).mean() > MAJORITY:
                    features = cells(view.image) if features is None else features
                    share = np.array(features.shape[1:]) / view.size
                    (top, left), (bottom, right) = (corner * share).astype(int), ((corner + side) * share).astype(int)
                    piece = features[:, top : max(bottom, top + 1), left : max(right, left + 1)]
                    pieces.append(piece.flatten(1).T)
        if all(len(pieces) == per_class for pieces in found.values()):
            break
    kept = {name: pieces for name, pieces in found.items() if len(pieces) >= LEAST}
    return _require_classes(f"{reader.dataset.name}'s images", kept)


def cell_features(
    network: inference.Network, teacher: Teacher, image: np.ndarray, size: tuple[int, int] | int
) -> torch.Tensor:
    """Features `[C, h, w]` of the cells of an image `[H, W, 3]` uint8, in the space of the network's points.

    Args:
        size: rows and columns to resize it to; or one number for the shorter side, with the longer in proportion and
            both rounded to multiples of the teacher's stride.
    """
    if isinstance(size, int):
        scale = size / min(image.shape[:2]) / teacher.stride
        size = [max(1, round(side * scale)) * teacher.stride for side in image.shape[:2]]
    pixels = torch.from_numpy(np.array(image)).to(network.device).movedim(-1, 0)[None].float() / 255
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return inference.image_features(network.model, teacher, pixels)[0]


def patches(cells: torch.Tensor) -> torch.Tensor:
    """Of the features of an image's cells `[C, h, w]` at most `PATCHES`, evenly spaced: `[n, C]`."""
    rows = cells.flatten(1).T
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), PATCHES), device=rows.device).long()]


def require_width(network: inference.Network, width: int, what: str) -> None:
    """Raises InputError unless features of `width` numbers (those of `what`) lead into the space of its points."""
    model, points = network.model, point_channels(network.model, network.student)
    wanted, end = points, width
    if model.image_head:
        wanted, end = model.image_head[0]["weight"].shape[1], len(model.image_head[-1]["bias"])
    if (width, end) != (wanted, points):
        raise InputError(
            f"{what} gives {width} numbers a patch, but the network takes {wanted} of them to its points' {points}; "
            "use the image network that it was pretrained with."
        )


def classifier(examples: dict[str, torch.Tensor], classes: tuple[str, ...]) -> tuple[Layers, float]:
    """The layer from L2-normalised features of points to logits of the K classes (a model's `class_head`).

    And per cent of the examples' own features that it gets right: where that is low, points cannot do better.

    Args:
        examples: class -> features `[n, C]` in the space of the points; two classes at least.
        classes: the data set's K, by train id; one without examples has the least logit that float32 holds.
    """
    rows = F.normalize(torch.cat([*examples.values()]).float(), dim=1)
    ids = torch.tensor([classes.index(name) for name in examples])
    lengths = torch.tensor([len(features) for features in examples.values()])
    labels = torch.repeat_interleave(torch.arange(len(ids)), lengths).to(rows.device)
    found = logistic_regression(rows, labels)
    weight, bias = rows.new_zeros(len(classes), rows.shape[1]), rows.new_full((len(classes),), NEVER)
    weight[ids], bias[ids] = (values.float() for values in found)
    right = 100 * float((F.linear(rows, weight, bias)[:, ids].argmax(1) == labels).float().mean())
    return [{"weight": weight.cpu(), "bias": bias.cpu()}], right


def logistic_regression(x: torch.Tensor, labels: torch.Tensor, c: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """One classifier a class against all others: weights `[K, C]` and biases `[K]`, float64.

    The minimum of |w|^2 / 2 + b^2 / 2 + c sum_i s_i log(1 + exp(-y_i (w x_i + b))) for each class, where s_i is
    n / (K n_k) for the n_k rows of the class and 1 for others: what liblinear minimises with balanced classes, three at
    least. By L-BFGS, from zero, so that the result is the same every time.

    Args:
        x: `[n, C]`.
        labels: `[n]` int64 in 0..K-1, each of which occurs.
        c: weight of the data against that of the penalty.
    """
    x, one = x.double(), F.one_hot(labels).double()
    counts = one.sum(0)
    sign, share = 2 * one - 1, torch.where(one > 0, len(x) / (len(counts) * counts), 1.0)
    weight, bias = (x.new_zeros(*size, requires_grad=True) for size in ((len(counts), x.shape[1]), (len(counts),)))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        loss = (weight.square().sum() + bias.square().sum()) / 2
        loss = loss + c * (share * F.softplus(-sign * F.linear(x, weight, bias))).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return weight.detach(), bias.detach()


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _require_class(place: Path, name: str, classes: tuple[str, ...]) -> None:
    if name not in classes[1:]:
        raise InputError(
            f"{place}: `{printable(name, 100)}` is no class of the data set; its classes are {', '.join(classes[1:])}."
        )


def _require_classes(place: Path | str, found: dict) -> dict:
    if len(found) < 2:
        raise InputError(f"{place}: there are examples of {len(found)} classes, to tell apart there must be two.")
    return found
