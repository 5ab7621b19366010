"""Classes of one scan: `python examples/2_classes.py MODEL.pt SCAN.bin`, with a model.pt of linprobe or fewshot."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone: see the README, "As a library"
import slidr

network = slidr.load(sys.argv[1])
points = np.fromfile(sys.argv[2], np.float32).reshape(-1, 4)

counts = Counter(network.classes[i] for i in network(points, head=True).tolist())
for name, count in counts.most_common():
    print(f"{name:<22} {count:,} points")
