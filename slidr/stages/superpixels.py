"""Superpixel maps ahead of pretraining (which computes missing ones itself), and those that others made."""

from data.datasets import open_reader
from data.map_files import import_all
from data.superpixels import compute_all, map_path
from slidr.config import Superpixels
from slidr.training import next_command


def run(settings: Superpixels) -> None:
    """Compute every missing map of the split, or of this machine's share of it; or import others' maps of them."""
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    folder, kind = settings.superpixels_folder / reader.dataset.name, settings.superpixel_settings()
    share, shares = map(int, settings.shard.split("/"))
    images, shard = reader.image_files(), slice(share - 1, None, shares)
    following = next_command("pretrain", settings)
    if settings.maps:
        count, renumbered = import_all(images, settings.maps, folder, kind, shard, settings.workers)
        print(
            f"superpixels: {count} maps of {settings.maps} imported to {map_path(folder, kind, 'x').parent}, "
            f"{renumbered} of them renumbered to fit 16 bits; next: {following} --superpixels {kind.kind}"
        )
        return
    images = images[shard]
    made = compute_all(images, folder, kind, settings.workers)
    print(
        f"superpixels: {made} new {settings.superpixels} maps in {folder}, {len(images) - made} were there; "
        f"next: {following}"
    )
