"""A large photograph that needs no download."""

from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images


def bundled_photograph(height: int = 1024) -> Image.Image:
    """Put scikit-learn's two photographs side by side, each cut to a square and enlarged.

    Args:
        height: Height in pixels; the width is twice that. Default: 1024.
    """
    photograph = Image.new("RGB", (2 * height, height))
    for index, pixels in enumerate(load_sample_images().images):
        square = ImageOps.fit(Image.fromarray(pixels), (height, height), Image.Resampling.BICUBIC)
        photograph.paste(square, (index * height, 0))
    return photograph
