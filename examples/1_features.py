"""Features of one scan: `python examples/1_features.py MODEL.pt SCAN.bin` (float32 x, y, z, intensity a point).

Needs requirements.txt without triton; torch-scatter and a GPU are not needed either.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone: see the README, "As a library"
import slidr

network = slidr.load(sys.argv[1])
points = np.fromfile(sys.argv[2], np.float32).reshape(-1, 4)

features = network(points)  # [N, C], unit vectors, in the space that is shared with images
backbone = network(points, features="backbone")  # [N, 96] at width 1: what linear probing sees
print(f"{len(points):,} points, features {tuple(features.shape)}, backbone {tuple(backbone.shape)}")

nearest = (features @ features[0]).argsort(descending=True)[1:6]
print(
    f"most similar to point 0 at {points[0, :3].round(1)}: " + ", ".join(str(points[i, :3].round(1)) for i in nearest)
)
