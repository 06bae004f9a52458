import random

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from slide_mm.engine.tiling import detect_by_tiles, make_tiles, segment_by_tiles


@pytest.mark.parametrize("seed", range(8))
def test_cores_part_the_image(seed):
    rng = random.Random(seed)
    size, tile_size = (rng.randint(1, 300), rng.randint(1, 300)), rng.randint(4, 90)
    covered = np.zeros(size, int)
    for tile in make_tiles(size, tile_size):
        assert [stop - start for start, stop in zip(tile.start, tile.stop, strict=True)] == [
            min(side, tile_size) for side in size
        ]
        for axis in (0, 1):
            assert tile.start[axis] <= tile.core_start[axis] < tile.core_stop[axis]
            assert tile.core_stop[axis] <= tile.stop[axis] <= size[axis]
        covered[tuple(map(slice, tile.core_start, tile.core_stop))] += 1
    assert (covered == 1).all()


def test_labels_of_tiles_are_those_of_the_image():
    """A model that sees 5 pixels around each, and zeros outside, never sees the tiles' borders."""
    image = np.random.default_rng(0).integers(0, 2, (97, 150, 3), dtype=np.uint8)

    def predict(part):
        padded = np.pad(part[..., 0], 5)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11))
        return windows.sum((2, 3))

    whole = predict(image)
    tiles = make_tiles(image.shape[:2], 48)
    assert len(tiles) > 4
    assert (segment_by_tiles(predict, image, tiles) == whole).all()


def find_rectangles(image):
    """A perfect detector of rectangles of one colour each, also of cut ones, from 6 x 6 pixels."""
    masks, boxes = [], []
    for color in np.unique(image[..., 0]):
        mask = (image[..., 0] == color) & (image[..., 1] == 255)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if min(len(rows), len(columns)) >= 6:
            masks.append(mask)
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        scores=torch.full((len(boxes),), 0.9),
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=torch.from_numpy(np.stack(masks))
        if boxes
        else torch.zeros(0, *image.shape[:2]).bool(),
    )


def test_each_object_is_found_once_and_whole():
    image = np.zeros((300, 400, 3), np.uint8)
    truth = [(5, 5, 17, 15), (40, 60, 54, 70), (90, 91, 104, 105), (390, 290, 400, 300)]
    truth += [(120, 100, 330, 250), (0, 150, 13, 160)]
    for color, (left, top, right, bottom) in enumerate(truth, 1):
        image[top:bottom, left:right] = 40 * color, 255, 0
    tiles = make_tiles(image.shape[:2], 64)
    found = detect_by_tiles(find_rectangles, image, tiles)
    assert len(found) == len(truth)
    for box in torch.tensor(truth):
        distances = (found.bboxes - box).abs().amax(1)
        index = distances.argmin()
        # What only the shrunk image shows whole is known to a few pixels.
        assert distances[index] <= 6
        mask = found.masks[index].unfold(image.shape[:2])
        area = (box[2:] - box[:2]).prod().item()
        assert mask.sum() == pytest.approx(area, rel=0.1)
