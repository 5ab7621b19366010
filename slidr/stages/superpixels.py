"""Superpixel maps ahead of pretraining (which computes missing ones itself)."""

from data.datasets import open_reader
from data.superpixels import compute_all
from slidr.config import Superpixels


def run(settings: Superpixels) -> None:
    """Compute every missing map of the split."""
    reader = open_reader(settings.dataset, settings.root, settings.split)
    folder = settings.superpixels_folder / settings.dataset
    made = compute_all(reader.image_files(), folder, settings.superpixel_settings(), settings.workers)
    print(f"superpixels: {made} new {settings.superpixels} maps in {folder}; next: python run.py pretrain")
