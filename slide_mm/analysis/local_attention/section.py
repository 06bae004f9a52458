"""What the sections of the report are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure of the report, with its file name, without a suffix, and what it shows."""

    name: str
    caption: str
    figure: Figure

    def to_png(self) -> bytes:
        """Draw it."""
        png = BytesIO()
        self.figure.savefig(png, format="png", dpi=DPI)
        return png.getvalue()


@dataclass(frozen=True)
class Section:
    """One question that the report answers.

    Attributes:
        name: Its key among the numbers.
        title: Its headline.
        text: What is measured, and how.
        numbers: All figures, ready for JSON.
        findings: What came out, one sentence each.
        header: Names of its table's columns; ``lines`` are its cells.
    """

    name: str
    title: str
    text: str
    numbers: dict[str, Any]
    findings: Sequence[str] = ()
    header: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=list)


def make_grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches, and its panels (rows, columns), whose axes are off."""
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    return figure, panels
