"""The whole way on the built-in world: superpixels, pretraining, probes against random, a film, pictures, one table."""

import shutil
import time
from datetime import datetime

from data.files import write_text
from slidr import config, pictures
from slidr.methods import settings_of
from slidr.report import score_table
from slidr.stages import knn, linprobe, pretrain, superpixels
from slidr.training import next_command

PICTURES = {
    "camera.png": "a camera image with lidar points and superpixels",
    "similarity.png": "the points the network finds similar to one of them",
    "birds_eye_0.png": "prediction next to ground truth",
    "film.png": "labels of a scene's first frame find its later points: of film.mp4, by nearest neighbours",
    "pretraining.png": "the loss of pretraining",
    "linear_probe.png": "loss and mIoU of the linear probe",
    "classes.png": "the table as a chart",
}


def run(settings: config.Demo) -> None:
    """Run the demo by the settings."""
    began = time.monotonic()
    common = {"root": settings.root, "seed": settings.seed, "threads": settings.threads, "workers": settings.workers}
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"

    def recipe(settings_type: type[config.Settings] | None, recipes: str, **values: object) -> config.Settings:
        values = common | {key: value for key, value in values.items() if value is not None}
        return config.load(settings_type, [f"--{key}={value}" for key, value in values.items()], recipes, settings_of)

    print("1/5  the built-in world, and superpixels of its images")
    superpixels.run(recipe(config.Superpixels, "pretrain"))
    print("\n2/5  pretraining: the lidar network learns from the frozen image network, without labels")
    places = {"output": settings.output, "name": name}
    pretraining = recipe(None, "pretrain", epochs=settings.pretrain_epochs, **places)
    pretrained = pretrain.run(pretraining)
    probes = {}
    for step, (label, weights) in enumerate({"pretrained": pretrained / "model.pt", "random": "random"}.items(), 3):
        print(f"\n{step}/5  linear probe of the {label} network on held-out scenes")
        places["name"] = f"{name}-{label}"
        probes[label] = linprobe.run(
            recipe(config.Linprobe, "linprobe", weights=weights, epochs=settings.probe_epochs, **places)
        )
    print("\n5/5  the film of nearest neighbours")
    places["name"] = name
    filmed = knn.run(recipe(config.Knn, "knn", weights=pretrained / "model.pt", **places)).folder
    columns, probed = {label: probe.scores for label, probe in probes.items()}, probes["pretrained"].folder

    folder = settings.output / "demo" / name
    folder.mkdir(parents=True)
    drawn = (pretrained / "camera.png", pretrained / "similarity.png", probed / "birds_eye_0.png")
    for source in (*drawn, filmed / "film.png", filmed / "film.mp4"):
        shutil.copy(source, folder)
    shutil.copy(pretrained / "curves.png", folder / "pretraining.png")
    shutil.copy(probed / "curves.png", folder / "linear_probe.png")
    pictures.bar_chart(columns, folder / "classes.png")
    table = "Linear probe on held-out scenes\n\n" + score_table(columns)
    shown = "\n\n".join(f"![{name}]({name})\n\n{meaning}" for name, meaning in PICTURES.items())
    recipes = "\n\n".join(
        f"{stage}:\n\n```yaml\n{(path / 'config.yaml').read_text(encoding='utf-8')}```"
        for stage, path in (("Pretraining", pretrained), ("Linear probe", probed))
    )
    write_text(folder / "report.md", f"# Demo {name}\n\n{table}\n\n{shown}\n\n## Settings\n\n{recipes}\n")
    print(
        f"\n{table}\n\nDone in {time.monotonic() - began:.0f} s. Everything lies in {folder}:\n"
        "  report.md          the table above, the pictures, the settings\n"
        + "".join(f"  {name:<18} {meaning}\n" for name, meaning in PICTURES.items())
        + f"and the runs themselves in {pretrained}, {probed}, {filmed}.\n"
        f"Next: {next_command('fewshot', pretraining, pretrained)} --pct 10     fine-tune it on a tenth of the labels\n"
        f"      {next_command('show', pretraining, pretrained)} --frame 3     draw another frame\n"
        "      python run.py pretrain --help     every setting"
    )
