"""Lidar pretraining. As a library: `slidr.load("model.pt")` gives features of points (`slidr.inference.Network`)."""

from slidr.inference import Network, load

__all__ = ["Network", "load"]
