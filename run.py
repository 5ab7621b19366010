"""The front door: `python run.py STAGE [recipe] [--key value ...]`."""

import importlib
import io
import os
import sys

from data.files import InputError
from data.workers import dead_workers_named
from slidr import config
from slidr.methods import METHODS, settings_of
from slidr.training import EXIT_CODE, Stopped
from slidr.training.distributed import dead_processes_named

# In the order in which a user meets them: name -> (settings; None = those of the method, folder of its recipes)
STAGES = {
    "demo": (config.Demo, None),
    "synth": (config.Synth, None),
    "superpixels": (config.Superpixels, "pretrain"),
    "pretrain": (None, "pretrain"),
    "linprobe": (config.Linprobe, "linprobe"),
    "fewshot": (config.Fewshot, "fewshot"),
    "evaluate": (config.Evaluate, None),
    "show": (config.Show, "pretrain"),
    "convert": (config.Convert, None),
    "env": (config.Env, None),
}
PRETRAIN = f"Pretrain a lidar network without labels (--method {' | '.join(METHODS)} | package.module:CLASS)."


def show(text: str) -> None:
    """Print to a pager or to `head`, which may close before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its own end


def main(arguments: list[str]) -> int:
    """Run one stage; 0 = done, 2 = the input cannot be used, 75 = stopped, can go on (one sentence on stderr)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # `?` for what the locale lacks, rather than the end of a run
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<12} {kind.__doc__.strip() if kind else PRETRAIN}" for name, (kind, _) in STAGES.items())
        usage = "python run.py STAGE [recipe] [--key value ...]        python run.py STAGE --help"
        show("\n".join([usage, "", *lines]))
        return 0
    name, *rest = arguments
    try:
        if name not in STAGES:
            raise InputError(f"there is no stage `{name}`; the stages are {', '.join(STAGES)}.")
        settings_type, recipes = STAGES[name]
        words = [word for word in rest if word not in ("-h", "--help")]
        if words != rest:
            text = config.help_text(settings_type, words, recipes, settings_of, METHODS)
            show(f"python run.py {name} [recipe] [--key value ...]\n\n{text}")
            return 0
        settings = config.load(settings_type, words, recipes, settings_of, METHODS)
        with dead_workers_named(), dead_processes_named():
            importlib.import_module(f"slidr.stages.{name}").run(settings)
    except InputError as error:
        print(f"run.py {name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"run.py {name}: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
