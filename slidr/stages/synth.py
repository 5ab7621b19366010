"""The built-in world, written to disk in the official layouts."""

import shlex

from data.datasets.synthetic import SyntheticWorld, write_kitti, write_kitti_object, write_nuscenes
from slidr.config import Synth


def run(settings: Synth) -> None:
    """Write the world; a world of the same settings is left as it is."""
    names = ("train_scenes", "val_scenes", "frames_per_scene", "image_scale", "azimuths", "seed")
    world = SyntheticWorld(**{name: getattr(settings, name) for name in names})
    root = settings.root
    own = root == Synth.model_fields["root"].default
    layouts = {
        "nuscenes": (write_nuscenes, [] if own else ["--root", root]),
        "kitti": (write_kitti, ["--dataset", "kitti", "--root", root / "kitti"]),
        "kitti_object": (
            write_kitti_object,
            ["--dataset", "kitti_object", "--root", root / "kitti_object", "--train_split=train", "--val_split=val"],
        ),
    }
    asked = ("nuscenes", "kitti") if settings.layout == "both" else (settings.layout,)
    for layout in asked:
        layouts[layout][0](root / layout, world, settings.workers)
    commands = (shlex.join(["python", "run.py", "pretrain", *map(str, layouts[layout][1])]) for layout in asked)
    print(f"synth: {root}; next: {'   or: '.join(commands)}")
