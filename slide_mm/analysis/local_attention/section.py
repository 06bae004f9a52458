"""What the sections of the report are made of, and what they look at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Its file name, without a suffix.
        caption: What it shows.
        figure: The drawing.
    """

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
        header: Names of the columns of its table.
        lines: Cells of its table.
        pictures: Its figures.
    """

    name: str
    title: str
    text: str
    numbers: dict[str, Any]
    findings: Sequence[str] = ()
    header: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=list)


class Photograph(NamedTuple):
    """An image to look at.

    Attributes:
        name: Where it comes from.
        pixels: (H, W, 3), RGB, uint8.
        tensor: What the model makes of it, (1, 3, H, W).
        points: Pixels to look at closely, (x, y).
    """

    name: str
    pixels: np.ndarray
    tensor: Tensor
    points: Sequence[tuple[int, int]]


def central_crop(image: Tensor, side: int) -> Tensor:
    """The middle of (B, C, H, W), at most ``side`` pixels high and wide."""
    top, left = (max(0, size - side) // 2 for size in image.shape[2:])
    return image[..., top : top + side, left : left + side]


def salient_points(pixels: np.ndarray, number: int) -> list[tuple[int, int]]:
    """Find pixels where the image changes most, far from each other and from the border.

    Args:
        pixels: (H, W, 3).
        number: How many.

    Returns:
        (x, y) of each.
    """
    gray = torch.from_numpy(pixels).float().mean(-1)
    cell = max(1, min(gray.shape) // 64)
    gray = torch.nn.functional.avg_pool2d(gray[None, None], cell)[0, 0]
    slopes = torch.stack(torch.gradient(gray)).norm(dim=0)
    height, width = gray.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    from_border = torch.stack((rows, columns, height - 1 - rows, width - 1 - columns)).amin(0)
    slopes[from_border < min(height, width) // 8] = -1
    points = []
    for _ in range(number):
        row, column = divmod(int(slopes.argmax()), width)
        points.append((cell * column + cell // 2, cell * row + cell // 2))
        near = (
            torch.hypot((rows - row).float(), (columns - column).float()) < min(height, width) // 3
        )
        slopes[near] = -1
    return points
