import numpy as np

from slide_mm.datasets import bundled_photograph


def test_two_photographs_without_a_seam():
    photograph = bundled_photograph(64)
    assert photograph.size == (128, 64)
    gray = np.asarray(photograph.convert("L"), dtype=float)
    assert gray[:, :58].std() > 20 < gray[:, 70:].std()
    # Beside each other they would differ by more than 100 here.
    assert np.abs(np.diff(gray.mean(0)))[58:70].max() < 40
