"""What the tools show: curves, pictures, counts and tables."""

from slide_mm.analysis.complexity import Complexity, count_complexity, count_flops
from slide_mm.analysis.logs import list_curves, plot_runs, read_scalars
from slide_mm.analysis.model_index import fill_in_metafile, group_by_metafile
from slide_mm.analysis.tables import (
    TABLES,
    Row,
    count_row,
    fill_in_readme,
    format_comparison,
    group_by_readme,
    list_configs,
    read_paper,
)

__all__ = [
    "TABLES",
    "Complexity",
    "Row",
    "count_complexity",
    "count_flops",
    "count_row",
    "fill_in_metafile",
    "fill_in_readme",
    "format_comparison",
    "group_by_metafile",
    "group_by_readme",
    "list_configs",
    "list_curves",
    "plot_runs",
    "read_paper",
    "read_scalars",
]
