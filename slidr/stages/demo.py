"""The whole way on the built-in world: superpixels, pretraining, linear probes against random, pictures, one table."""

import shutil
import time
from datetime import datetime

from data.disk import atomic_write
from slidr import config, pictures
from slidr.report import score_table
from slidr.stages import linprobe, pretrain, superpixels


def run(settings: config.Demo) -> None:
    """Run the demo by the settings."""
    began = time.monotonic()
    common = {"root": settings.root, "seed": settings.seed, "threads": settings.threads, "workers": settings.workers}
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"

    def recipe(settings_type: type[config.Settings], prefix: str, **values: object) -> config.Settings:
        values = common | {key: value for key, value in values.items() if value is not None}
        return config.load(settings_type, [f"--{key}={value}" for key, value in values.items()], prefix)

    print("1/4  the built-in world, and superpixels of its images")
    superpixels.run(recipe(config.Superpixels, "slidr"))
    print("\n2/4  pretraining: the lidar network learns from the frozen image network, without labels")
    places = {"output": settings.output, "name": name}
    pretrained = pretrain.run(recipe(config.Pretrain, "slidr", epochs=settings.pretrain_epochs, **places))
    columns = {}
    for step, (label, weights) in enumerate({"pretrained": pretrained / "model.pt", "random": "random"}.items(), 3):
        print(f"\n{step}/4  linear probe of the {label} network on held-out scenes")
        places["name"] = f"{name}-{label}"
        probe = linprobe.run(
            recipe(config.Linprobe, "linprobe", weights=weights, epochs=settings.probe_epochs, **places)
        )
        columns[label] = probe["scores"]
        if label == "pretrained":
            probed, classes = probe["folder"], probe["classes"]

    folder = settings.output / "demo" / name
    folder.mkdir(parents=True)
    for source in (pretrained / "camera.png", pretrained / "similarity.png", probed / "birds_eye_0.png"):
        shutil.copy(source, folder)
    shutil.copy(pretrained / "curves.png", folder / "pretraining.png")
    shutil.copy(probed / "curves.png", folder / "linear_probe.png")
    pictures.bar_chart(columns, classes, folder / "classes.png")
    table = score_table(columns, classes)
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(f"# Demo {name}\n\nLinear probe on held-out scenes, IoU in per cent.\n\n{table}\n")
    print(
        f"\nLinear probe on held-out scenes, IoU in per cent\n\n{table}\n\n"
        f"Done in {time.monotonic() - began:.0f} s. Everything lies in {folder}:\n"
        "  report.md          the table above\n"
        "  camera.png         a camera image with lidar points and superpixels\n"
        "  similarity.png     the points the network finds similar to one of them\n"
        "  birds_eye_0.png    prediction next to ground truth\n"
        "  pretraining.png, linear_probe.png, classes.png    losses, mIoU, classes\n"
        f"and the runs themselves in {pretrained}, {probed}.\n"
        "Next: python run.py fewshot --pct 10     fine-tune it on a tenth of the labels\n"
        "      python run.py show --frame 3       draw another frame\n"
        "      python run.py pretrain --help      every setting"
    )
