"""Pictures of predictions."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def tile_pictures(paths: Sequence[str | Path], out: str | Path, num_columns: int = 2) -> None:
    """Put pictures of one size together, row by row.

    Args:
        paths: Pictures to read, at least one.
        out: Picture to write.
        num_columns: Pictures in a row. Default: 2.
    """
    pictures = [Image.open(path) for path in paths]
    width, height = pictures[0].size
    num_rows = -(-len(pictures) // num_columns)
    sheet = Image.new("RGB", (num_columns * width, num_rows * height), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, num_columns)
        sheet.paste(picture, (column * width, row * height))
    sheet.save(out)
