"""Typed settings of every stage. Defaults, a recipe (YAML) and the command line meet here and nowhere else.

Later wins: the defaults (the published recipe where there is one), the recipe file, `--key value` flags. An unknown key
is an error that names the nearest known one. Without a recipe a stage takes its data set's own,
`slidr/configs/<slidr | linprobe | fewshot>_<data set>.yaml`.
"""

# ruff: noqa: F401

from slidr.config.reading import RECIPES, describe, load, read_yaml, to_yaml, validate, what_decides
from slidr.config.settings import (
    Architecture,
    Convert,
    Demo,
    Downstream,
    Env,
    Evaluate,
    Fewshot,
    Linprobe,
    Positive,
    Pretrain,
    Settings,
    Show,
    Superpixels,
    Synth,
    VoxelSize,
    WithData,
    WithRun,
    WithSuperpixels,
    WithTraining,
)
