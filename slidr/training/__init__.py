"""How anything is trained here: the contract of learners, one loop, the run's folder, checkpoints, processes."""

from slidr.training.learner import Learner, Step
from slidr.training.loop import Diverged, arithmetic, autocast, fit, open_loader, prepare
from slidr.training.optimizers import make_optimizer, rate_factor
from slidr.training.replay import read_replay, replay
from slidr.training.run_folder import Run, next_command
from slidr.training.stopping import EXIT_CODE, Finished, Stopped

__all__ = [
    "EXIT_CODE",
    "Diverged",
    "Finished",
    "Learner",
    "Run",
    "Step",
    "Stopped",
    "arithmetic",
    "autocast",
    "fit",
    "make_optimizer",
    "next_command",
    "open_loader",
    "prepare",
    "rate_factor",
    "read_replay",
    "replay",
]
