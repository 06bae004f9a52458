"""What the tools show: curves and pictures."""

from slide_mm.analysis.logs import plot_run, read_scalars
from slide_mm.analysis.pictures import tile_pictures

__all__ = ["plot_run", "read_scalars", "tile_pictures"]
