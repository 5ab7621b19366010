"""The front door: `python run.py STAGE [recipe] [--key value ...]`."""

import contextlib
import errno
import importlib
import re
import sys

from data.files import InputError, printable
from data.progress import Lasting
from data.workers import FEW_FILES, LESS_MEMORY, dead_workers_named, end_workers
from slidr import config
from slidr.methods import METHODS, settings_of
from slidr.training import EXIT_CODE, Finished, Stopped
from slidr.training.distributed import dead_processes_named

# In the order in which a user meets them: name -> (settings; None = those of the method, folder of its recipes)
STAGES = {
    "demo": (config.Demo, None),
    "synth": (config.Synth, None),
    "superpixels": (config.Superpixels, "pretrain"),
    "pretrain": (None, "pretrain"),
    "linprobe": (config.Linprobe, "linprobe"),
    "fewshot": (config.Fewshot, "fewshot"),
    "detect": (config.Detect, "detect"),
    "evaluate": (config.Evaluate, None),
    "show": (config.Show, "pretrain"),
    "knn": (config.Knn, "knn"),
    "zeroshot": (config.Zeroshot, None),
    "view": (config.View, "pretrain"),
    "features": (config.Features, None),
    "convert": (config.Convert, None),
    "export": (config.Export, None),
    "env": (config.Env, None),
}
PRETRAIN = f"Pretrain a lidar network without labels (--method {' | '.join(METHODS)} | package.module:CLASS)."


def main(arguments: list[str]) -> int:
    """Run one stage; 0 = done, 2 = the input cannot be used, 75 = stopped, can go on (one sentence on stderr)."""
    with contextlib.redirect_stdout(Lasting(sys.stdout)), contextlib.redirect_stderr(Lasting(sys.stderr)):
        try:
            return run(arguments)
        finally:
            end_workers()
            sys.stdout.flush()


def run(arguments: list[str]) -> int:
    """What `main` does."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<12} {kind.__doc__.strip() if kind else PRETRAIN}" for name, (kind, _) in STAGES.items())
        usage = "python run.py STAGE [recipe] [--key value ...]        python run.py STAGE --help"
        print("\n".join([usage, "", *lines]))
        return 0
    name, *rest = arguments
    try:
        if name not in STAGES:
            raise InputError(f"there is no stage `{name}`; the stages are {', '.join(STAGES)}.")
        settings_type, recipes = STAGES[name]
        words = [word for word in rest if word not in ("-h", "--help")]
        if words != rest:
            text = config.help_text(settings_type, words, recipes, settings_of, METHODS)
            print(f"python run.py {name} [recipe] [--key value ...]\n\n{text}")
            return 0
        settings = config.load(settings_type, words, recipes, settings_of, METHODS)
        with dead_workers_named(), dead_processes_named():
            importlib.import_module(f"slidr.stages.{name}").run(settings)
    except (InputError, MemoryError, OSError, RuntimeError) as error:
        if not (sentence := refused(error)):
            raise
        print(f"run.py {printable(name, 50)}: {printable(sentence)}", file=sys.stderr)
        return 2
    except Finished as finished:
        print(f"{name}: {finished}")
    except Stopped as stopped:
        print(f"run.py {name}: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def refused(error: Exception) -> str | None:
    """The sentence for the user; None if this is no fault of the input or the machine, but one of the program."""
    if isinstance(error, InputError):
        return str(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return FEW_FILES
    if isinstance(error, OSError) and error.filename:  # no permission, a name that is too long, a broken disk
        return f"cannot use {error.filename}: {error.strerror}; choose another place."
    if isinstance(error, MemoryError) or re.search(
        r"out of memory|(not enough|can't allocate) memory|size calculation overflowed", str(error)
    ):
        return f"there is too little memory for this: {LESS_MEMORY}, --width or what else makes it large."
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
