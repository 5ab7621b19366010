"""A film and a contact sheet of pictures that are on disk."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from data.files import InputError, atomic_write
from data.images import read_image

FRAMES_A_SECOND = 4
SHEET = 6  # pictures on a contact sheet, in two columns


def write_film(frames: list[Path], path: Path) -> None:
    """An MP4 (H.264, yuv420p, its index first) that any player opens, of PNGs of one size, in their order.

    Sides become even by leaving out a last row or column. Raises InputError if ffmpeg does not run.
    """
    rows, columns = (side // 2 * 2 for side in read_image(frames[0]).shape[:2])
    with atomic_write(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (columns, rows),
            fps=FRAMES_A_SECOND,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=["-movflags", "+faststart"],
            ffmpeg_log_level="error",
        )
        try:
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(read_image(frame)[:rows, :columns]))
        except (OSError, RuntimeError) as error:
            raise InputError(f"ffmpeg of imageio-ffmpeg cannot write {path} ({error}); install it again.") from error
        finally:
            writer.close()


def write_contact_sheet(frames: list[Path], path: Path) -> None:
    """A PNG of at most SHEET of the pictures, evenly spaced, at half their size."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, SHEET).astype(int))]
    images = [Image.fromarray(read_image(frame)).reduce(2) for frame in chosen]
    columns, (width, height) = min(2, len(images)), images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
