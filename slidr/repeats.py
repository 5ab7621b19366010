"""One setting with several seeds, and what is finished is not run again."""

from collections.abc import Callable
from datetime import datetime

from data.disk import atomic_write
from data.frame import Reader
from slidr import config, report
from slidr.downstream import report_scores
from slidr.training.run import require_same

Run = Callable[[config.Downstream], dict]


def run_seeds(stage: str, run: Run, settings: config.Downstream, name: str) -> list[dict]:
    """The scores of runs `<name>-seed<k>` of the settings, one a seed. A finished one is read, a cut-off one goes on.

    Args:
        stage: "linprobe" or "fewshot".
        run: the stage's `run`.
        settings: complete: weights named, schedule filled in.
        name: what the runs' names begin with.

    Raises InputError if a run of one of these names has other settings.
    """
    results = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        once = settings.model_copy(update={"seeds": 1, "seed": seed, "name": f"{name}-seed{seed}", "resume": True})
        folder = settings.output / stage / once.name
        if (folder / "report.md").exists():
            require_same(folder, once)
            print(f"{folder} is finished and used as it is")
            results.append(report.load_scores(folder / "scores.json"))
            continue
        results.append(run(once)["scores"])
    return results


def repeat(stage: str, run: Run, settings: config.Downstream, task: dict, reader: Reader) -> dict:
    """Run all seeds and report mean ± standard deviation in `output/<stage>/<name>/`; as a stage's `run`.

    Args:
        stage, run, settings: see `run_seeds`.
        task, reader: see `slidr.downstream.finish`.
    """
    name = settings.name or f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    runs = run_seeds(stage, run, settings, name)
    scores, folder = report.mean_scores(runs), settings.output / stage / name
    table = report_scores(folder, f"mean of {len(runs)} seeds", scores, reader, task, settings)
    seeds = ", ".join(f"{report.percent(100 * run['miou'])} (seed {settings.seed + i})" for i, run in enumerate(runs))
    spread = f"{100 * scores['std']['miou']:.1f}"
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(f"# {stage} {name}\n\nmIoU: {seeds}.\n\n{table}\n\n![classes](classes.png)\n")
    print(f"\n{table}\n\n{stage}: mIoU {100 * scores['miou']:.1f} ± {spread} % of {seeds}; {folder / 'report.md'}")
    return {"scores": scores, "classes": reader.classes, "folder": folder}
