"""A large photograph that needs no download."""

import numpy as np
from PIL import Image, ImageOps


def bundled_photograph(height: int = 1024) -> Image.Image:
    """Put scikit-learn's two photographs side by side, enlarged, one fading into the other.

    Args:
        height: Height in pixels; the width is twice that. Default: 1024.
    """
    from sklearn.datasets import load_sample_images  # Whoever brings images does without.

    overlap = height // 8
    size = (height + overlap // 2, height)
    left, right = (
        ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.BICUBIC)
        for pixels in load_sample_images().images
    )
    fading = np.full(size[::-1], 255, dtype=np.uint8)
    fading[:, :overlap] = np.linspace(0, 255, overlap)
    photograph = Image.new("RGB", (2 * height, height))
    photograph.paste(left, (0, 0))
    photograph.paste(right, (2 * height - size[0], 0), Image.fromarray(fading))
    return photograph
