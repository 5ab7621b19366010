"""Superpixel maps ahead of pretraining (which computes missing ones itself)."""

from data.datasets import open_reader
from data.superpixels import compute_all
from slidr.config import Superpixels
from slidr.training import next_command


def run(settings: Superpixels) -> None:
    """Compute every missing map of the split, or of this machine's share of it."""
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    folder = settings.superpixels_folder / reader.dataset.name
    share, shares = map(int, settings.shard.split("/"))
    images = reader.image_files()[share - 1 :: shares]
    made = compute_all(images, folder, settings.superpixel_settings(), settings.workers)
    print(
        f"superpixels: {made} new {settings.superpixels} maps in {folder}, {len(images) - made} were there; "
        f"next: {next_command('pretrain', settings)}"
    )
