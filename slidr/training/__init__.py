"""How anything is trained here: one loop, the run's folder, checkpoints, several processes."""

from slidr.training.loop import arithmetic, autocast, fit, prepare, sgd
from slidr.training.replay import read_replay, replay
from slidr.training.run import Run
from slidr.training.stopping import EXIT_CODE, Stopped

__all__ = ["EXIT_CODE", "Run", "Stopped", "arithmetic", "autocast", "fit", "prepare", "read_replay", "replay", "sgd"]
