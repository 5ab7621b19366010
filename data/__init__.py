"""Disk -> Frame -> Batch. Knows nothing of networks."""
