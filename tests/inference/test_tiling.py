import random

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from slide_mm.inference.tiling import detect_by_tiles, encode_mask, make_tiles, segment_by_tiles


@pytest.mark.parametrize("seed", range(8))
def test_cores_part_the_image_and_windows_hold_what_fits_into_their_overlap(seed):
    rng = random.Random(seed)
    size, tile_size = (rng.randint(1, 300), rng.randint(1, 300)), rng.randint(4, 90)
    tiles = make_tiles(size, tile_size)
    covered = np.zeros(size, int)
    for window, core in tiles:
        covered[core] += 1
        for part, whole, side in zip(core, window, size, strict=True):
            assert 0 <= whole.start <= part.start < part.stop <= whole.stop <= side
            assert whole.stop - whole.start == min(side, tile_size)
    assert (covered == 1).all()
    for axis, side in enumerate(size):
        length = min(side, tile_size // 4)
        windows = [tile.window[axis] for tile in tiles]
        for start in range(side - length + 1):
            assert any(x.start <= start and start + length <= x.stop for x in windows)


@pytest.mark.parametrize(("num_classes", "dtype"), [(122, np.uint8), (300, np.uint16)])
def test_labels_of_tiles_are_those_of_the_image(num_classes, dtype):
    """A model that sees 5 pixels around each, and zeros outside, never sees the tiles' borders."""
    image = np.random.default_rng(0).integers(0, 2, (97, 150, 3), dtype=np.uint8)

    def segment(part):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(part[..., 0], 5), (11, 11))
        return windows.sum((2, 3)) + num_classes - 122

    labels = segment_by_tiles(segment, image, 48, num_classes)
    assert labels.dtype == dtype
    assert (labels == segment(image)).all()


def find_rectangles(image):
    """A perfect detector of green rectangles, each of its own red, that doesn't mind cuts.

    It sees no image that is larger than two of the tests' tiles.
    """
    assert max(image.shape[:2]) <= 2 * 64
    is_green = image[..., 1] == 255
    masks = [is_green & (image[..., 2] == red) for red in np.unique(image[is_green][:, 2])]
    masks = [mask for mask in masks if mask.sum() >= 9]
    areas = np.array([mask.sum() for mask in masks])
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        scores=torch.from_numpy(areas / (areas + 50)),  # The larger, the surer.
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=torch.from_numpy(np.array(masks, bool).reshape(-1, *image.shape[:2])),
    )


def draw_rectangles(rng, size):
    """Rectangles of all sizes that don't touch, on black."""
    image, boxes = np.zeros((*size, 3), np.uint8), []
    for longest in (*[size[0] // 2] * 2, *[60] * 6, *[20] * 30):
        width = rng.randint(10, longest)
        height = rng.randint(max(10, width // 2), min(longest, 2 * width))
        left, top = rng.randint(0, size[1] - width), rng.randint(0, size[0] - height)
        around = image[max(0, top - 8) : top + height + 8, max(0, left - 8) : left + width + 8]
        if not around.any():
            image[top : top + height, left : left + width] = 0, 255, 6 * (len(boxes) + 1)
            boxes.append([left, top, left + width, top + height])
    return image, torch.tensor(boxes)


@pytest.mark.parametrize("seed", range(8))
def test_each_object_is_found_once_and_whole(seed):
    rng = random.Random(seed)
    size = rng.randint(260, 420), rng.randint(260, 420)
    image, boxes = draw_rectangles(rng, size)
    found = detect_by_tiles(find_rectangles, image, 64)
    assert len(found) == len(boxes)
    matched = set()
    for bbox, mask in zip(found.bboxes, found.masks, strict=True):
        assert bbox.min() >= 0
        assert (bbox[2:] <= torch.tensor(size[::-1])).all()
        index = (boxes - bbox).abs().sum(1).argmin().item()
        matched.add(index)
        # What fits into the overlap is known to the pixel; what is larger, to pixels of the image
        # that it was found in.
        left, top, right, bottom = boxes[index].tolist()
        longer = max(right - left, bottom - top)
        assert (boxes[index] - bbox).abs().max() <= (0 if longer <= 13 else longer / 5)
        truth = np.zeros(size, np.uint8, order="F")
        truth[top:bottom, left:right] = 1
        iou = mask_utils.iou([mask], [mask_utils.encode(truth)], [0])
        assert iou.item() > (0.99 if longer <= 13 else 0.5)
    assert len(matched) == len(boxes)


def test_small_image_is_taken_whole():
    image, _ = draw_rectangles(random.Random(0), (128, 90))
    expected = find_rectangles(image)
    found = detect_by_tiles(find_rectangles, image, 64)
    assert torch.equal(found.bboxes, expected.bboxes)
    masks = [mask_utils.decode(mask) for mask in found.masks]
    assert (np.stack(masks) == expected.masks.numpy()).all()


def test_nothing_found_in_a_large_image():
    assert len(detect_by_tiles(find_rectangles, np.zeros((300, 200, 3), np.uint8), 64)) == 0


@pytest.mark.parametrize("seed", range(8))
def test_part_of_a_mask_is_encoded_as_the_whole(seed):
    rng = np.random.default_rng(seed)
    height, width, top, left = rng.integers(0, 9, 4)
    size = int(height + top + rng.integers(0, 3)), int(width + left + rng.integers(0, 3))
    part = rng.random((height, width)) < 0.7
    whole = np.zeros(size, np.uint8, order="F")
    whole[top : top + height, left : left + width] = part
    encoded = encode_mask(part, (int(top), int(left)), size)
    assert (mask_utils.decode(encoded) == whole).all()
    assert mask_utils.area(encoded) == part.sum()
