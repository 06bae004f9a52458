import random
from array import array

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from slide_mm.data_checks.masks import Mask, check_masks, sum_compressed_counts

SQUARE = [8, 8, 16, 8, 16, 16, 8, 16]
NAN = float("nan")


def decode_and_sum(text):
    """COCO's compressed form, number by number."""
    counts, number, bits = [], 0, 0
    for character in text:
        digit = ord(character) - 48
        number |= (digit & 31) << bits
        bits += 5
        if not 0 <= digit <= 63 or bits > 35:
            return -1
        if not digit & 32:
            number -= (digit & 16 > 0) << bits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = bits = 0
            if counts[-1] < 0:
                return -1
    return sum(counts) if text and not bits else -1


@pytest.mark.parametrize("seed", range(5))
def test_compressed_counts_are_those_of_a_plain_decoder(seed):
    rng = random.Random(seed)
    # Half of the digits say that others follow, and one in two numbers is negative.
    letters = "".join(map(chr, range(48, 112)))
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 4))) for _ in range(3000)]
    texts += ["".join(rng.choices("PQ01\u0100 p/", k=9)) for _ in range(200)]
    texts += ["P" * 6 + "0", "P" * 7 + "0"]
    expected = []
    for _ in range(300):
        counts = [rng.choice((0, 3, 70_000, 1 << 24)) for _ in range(rng.randint(1, 9))]
        run_lengths = mask_utils.frPyObjects({"size": [8, 8], "counts": counts}, 8, 8)
        texts.append(run_lengths["counts"].decode())
        expected.append(sum(counts))
    sums = list(map(sum_compressed_counts, texts))
    assert sums[-300:] == expected
    assert sums == list(map(decode_and_sum, texts))
    assert 300 < sum(x >= 0 for x in sums[:3000]) < 2700


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        *((nothing, Mask.ABSENT) for nothing in (None, [], {}, "", 0)),
        *((other, Mask.BROKEN) for other in ("all", 7, SQUARE, [3, SQUARE], {"counts": [3072]})),
        ([SQUARE], Mask.SOUND),
        ([array("d", SQUARE)], Mask.SOUND),
        ([SQUARE[:6]], Mask.SOUND),
        ([SQUARE[:4]], Mask.TOO_SHORT),
        ([SQUARE[:7]], Mask.TOO_SHORT),
        ([[], SQUARE], Mask.SOUND),
        ([SQUARE, ["a"] * 6], Mask.BROKEN),
        ([[10**400] * 6], Mask.BROKEN),
        *(([[x, 9, 16, 9, 16, 16]], Mask.BROKEN) for x in (NAN, 2e6, -2e6, None)),
        ([[-900, -900, 900, -900, 900, 900]], Mask.SOUND),
        *(([[x, 9, x + 8, 9, x + 8, 16]], Mask.EMPTY) for x in (64, -8)),
        *(([[9, y, 16, y, 16, y + 8]], Mask.EMPTY) for y in (48, -8)),
        ([[9, 9, 9.9, 9, 9.9, 16]], Mask.EMPTY),
        ({"size": [48, 64], "counts": [3000, 72]}, Mask.RUN_LENGTHS),
        *(
            ({"size": [48, 64], "counts": x}, Mask.BROKEN)
            for x in ([3000, 71], [3073, -1], [3072.0], [], "00", 3072)
        ),
        ({"size": [64, 48], "counts": [3072]}, Mask.BROKEN),
        ({"size": [2**31, 2**31], "counts": [2**62]}, Mask.BROKEN),
    ],
)
def test_what_a_training_makes_of_a_mask(segmentation, expected):
    """In an image of 64 x 48 pixels, and beside others."""
    assert check_masks([segmentation], np.array([[64, 48]])) == [expected]
    run_lengths = mask_utils.encode(np.eye(48, 64, dtype=np.uint8, order="F"))
    run_lengths["counts"] = run_lengths["counts"].decode()
    masks = [[SQUARE], segmentation, run_lengths, [SQUARE]]
    found = check_masks(masks, np.array([[64, 48]] * 4)).tolist()
    assert found == [Mask.SOUND, expected, Mask.RUN_LENGTHS, Mask.SOUND]
