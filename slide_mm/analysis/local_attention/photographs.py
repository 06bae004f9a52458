"""What the report looks at: photographs, and points in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from slide_mm.datasets import bundled_photograph
from slide_mm.engine.preflight import image_channels
from slide_mm.engine.reporting import ConfigError

NUM_POINTS = 3
# Smaller images leave nothing of the last stage but its border; larger ones are shrunk.
MIN_SIDE, MAX_SIDE = 160, 2048


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

    def __str__(self) -> str:
        height, width = self.pixels.shape[:2]
        return f"{self.name} ({width} x {height})"


def central_crop(image: Tensor, side: int) -> Tensor:
    """The middle of (B, C, H, W), at most ``side`` pixels high and wide."""
    top, left = (max(0, size - side) // 2 for size in image.shape[2:])
    return image[..., top : top + side, left : left + side]


def salient_points(pixels: np.ndarray, number: int) -> list[tuple[int, int]]:
    """Find pixels (x, y) where an image (H, W, 3) changes most.

    They are far from each other and from the border.
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


def read_photographs(
    paths: Sequence[str | Path], points: Sequence[tuple[float, float]], model: nn.Module
) -> list[Photograph]:
    """Read images, or take scikit-learn's if there are none, for a model of three channels.

    Args:
        paths: Image files.
        points: Where to look closely in each, as fractions of its width and height. Without any,
            where the image changes most.
        model: A detector or segmentor.

    Raises:
        ConfigError: If an image or a point is wrong, or the model takes other images.
    """
    if any(not 0 <= place < 1 for point in points for place in point):
        raise ConfigError("--points lie outside the image: give fractions of width and height")
    channels = image_channels(model)
    if channels != 3:
        raise ConfigError(
            f"the model takes images of {channels} channels: this report looks at photographs, of 3"
        )
    photographs = []
    for name, image in ({str(path): _read_image(path) for path in paths} or _bundled()).items():
        chosen = [(int(x * image.width), int(y * image.height)) for x, y in points]
        pixels = np.array(image)
        points_of_image = chosen or salient_points(pixels, NUM_POINTS)
        photographs.append(Photograph(name, pixels, _preprocess(pixels, model), points_of_image))
    return photographs


def _bundled() -> dict[str, Image.Image]:
    try:
        return {"bundled photograph": bundled_photograph()}
    except ImportError as error:
        raise ConfigError(
            "the photograph to look at is scikit-learn's, which is not installed: give images with "
            "--images, or pip install scikit-learn"
        ) from error


def _read_image(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError as error:
        raise ConfigError(f"image {path} does not exist: check the path") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if min(image.size) < MIN_SIDE:
        size = f"{image.width} x {image.height}"
        raise ConfigError(f"image {path} is {size}: give {MIN_SIDE} pixels a side at least")
    return image


def _preprocess(pixels: np.ndarray, model: nn.Module) -> Tensor:
    """What the model's own data preprocessor makes of an RGB image, without its padding."""
    height, width = pixels.shape[:2]
    # Configs tell preprocessors how to treat what OpenMMLab's pipelines load: BGR.
    bgr = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    data = model.data_preprocessor(dict(inputs=[bgr], data_samples=[BaseDataElement()]), False)
    image = data["inputs"][..., :height, :width]
    return image.float().to(next(model.backbone.parameters()).device)
