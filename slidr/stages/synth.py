"""The built-in world, written to disk in the official layouts."""

import shlex

from data.datasets.synthetic import SyntheticWorld, write_kitti, write_nuscenes
from slidr.config import Synth


def run(settings: Synth) -> None:
    """Write the world; a world of the same settings is left as it is."""
    names = ("train_scenes", "val_scenes", "frames_per_scene", "image_scale", "azimuths", "seed")
    world = SyntheticWorld(**{name: getattr(settings, name) for name in names})
    if settings.layout != "kitti":
        write_nuscenes(settings.root / "nuscenes", world, settings.workers)
    if settings.layout != "nuscenes":
        write_kitti(settings.root / "kitti", world, settings.workers)
    own = Synth.model_fields["root"].default
    nuscenes = [] if settings.root == own else ["--root", settings.root]
    words = {"nuscenes": nuscenes, "kitti": ["--dataset", "kitti", "--root", settings.root / "kitti"]}
    written = [words[layout] for layout in words if settings.layout in (layout, "both")]
    commands = (shlex.join(["python", "run.py", "pretrain", *map(str, flags)]) for flags in written)
    print(f"synth: {settings.root}; next: {'   or: '.join(commands)}")
