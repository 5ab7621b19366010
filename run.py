"""The front door: `python run.py STAGE [cfg.yaml] [--key value ...]`."""

import importlib
import sys

from data.disk import InputError
from data.workers import dead_workers_named
from slidr import config
from slidr.training import EXIT_CODE, Stopped
from slidr.training.distributed import dead_processes_named

# In the order in which a user meets them: name -> (settings, prefix of the recipe taken when no YAML is named)
STAGES = {
    "demo": (config.Demo, None),
    "synth": (config.Synth, None),
    "superpixels": (config.Superpixels, "slidr"),
    "pretrain": (config.Pretrain, "slidr"),
    "linprobe": (config.Linprobe, "linprobe"),
    "fewshot": (config.Fewshot, "fewshot"),
    "evaluate": (config.Evaluate, None),
    "show": (config.Show, "slidr"),
    "convert": (config.Convert, None),
    "env": (config.Env, None),
}


def main(arguments: list[str]) -> int:
    """Run one stage; 0 = done, 2 = the input cannot be used, 75 = stopped, can go on (one sentence on stderr)."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("python run.py STAGE [cfg.yaml] [--key value ...]        python run.py STAGE --help\n")
        for name, (settings_type, _) in STAGES.items():
            print(f"  {name:<12} {settings_type.__doc__.strip()}")
        return 0
    name, *rest = arguments
    try:
        if name not in STAGES:
            raise InputError(f"there is no stage `{name}`; the stages are {', '.join(STAGES)}.")
        settings_type, recipe = STAGES[name]
        if "-h" in rest or "--help" in rest:
            print(f"python run.py {name} [cfg.yaml] [--key value ...]\n\n{config.describe(settings_type)}")
            return 0
        settings = config.load(settings_type, rest, recipe)
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
