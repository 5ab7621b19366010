"""Typed settings of every stage: defaults, a recipe and the command line meet here and nowhere else.

What comes later wins: the defaults, the recipe (a YAML file), `--key value` flags. Without a recipe a stage takes the
data set's own, slidr/configs/linprobe/<data set>.yaml, or slidr/configs/pretrain/<method>_<data set>.yaml.
"""

# ruff: noqa: F401

from slidr.config.help import describe, help_text
from slidr.config.keys import (
    Architecture,
    Area,
    Channels,
    Count,
    Grid,
    Index,
    NonNegative,
    Positive,
    Range,
    Share,
    VoxelSize,
    Width,
    cells_of,
    key,
)
from slidr.config.parsing import identity_keys, load, to_yaml, validate
from slidr.config.recipes import RECIPES, read_recipe, read_yaml, shipped
from slidr.config.settings import (
    Detect,
    Downstream,
    FewLabels,
    Fewshot,
    Linprobe,
    MethodSettings,
    Settings,
    WithCloudAugmentation,
    WithData,
    WithImageAugmentation,
    WithImageNetwork,
    WithPictures,
    WithRun,
    WithSuperpixels,
    WithTeacher,
    WithTraining,
)
from slidr.config.tools import (
    Convert,
    Demo,
    Env,
    Evaluate,
    Export,
    Features,
    Knn,
    Show,
    Superpixels,
    Synth,
    View,
    Zeroshot,
)
