from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

from slide_mm.inference.tasks import Detection, choose_tile_size, draw_mask


def encode(mask):
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.fixture
def detection():
    """A detector that finds three instances, and draws by noting what it is given."""
    task = Detection.__new__(Detection)
    task.score_thr = 0.5
    found = InstanceData(
        bboxes=torch.arange(12.0).view(3, 4),
        scores=torch.tensor([0.9, 0.3, 0.5]),
        labels=torch.tensor([0, 1, 2]),
    )
    task.inferencer = lambda image, **_: {"predictions": [SimpleNamespace(pred_instances=found)]}
    drawn = []
    task.inferencer.visualizer = SimpleNamespace(
        dataset_meta={},
        add_datasample=lambda name, picture, sample, **_: drawn.append(sample.pred_instances),
        get_image=lambda: np.zeros((4, 4, 3), np.uint8),
    )
    task.drawn = drawn
    return task


def test_instances_below_the_least_score_are_left_out(detection):
    found = detection.detect(np.zeros((4, 4, 3), np.uint8))
    assert found.labels.tolist() == [0, 2]


def test_the_best_comes_out_on_top(detection):
    image = np.zeros((4, 4, 3), np.uint8)
    detection.draw(image, detection.detect(image))
    assert detection.drawn[0].labels.tolist() == [2, 0]


def test_holes_of_masks_stay_as_they_are():
    picture = np.zeros((24, 24, 3), np.uint8)
    mask = np.zeros((24, 24), bool)
    mask[2:22, 2:22] = True
    mask[8:16, 8:16] = False
    draw_mask(picture, encode(mask), (200, 100, 50), 0.5)
    # Colour inside, a line on each border, nothing in the middle of the hole.
    assert (picture[4, 4] == (100, 50, 25)).all()
    assert not picture[11:13, 11:13].any()
    assert (picture[7, 11] > picture[4, 4]).all()


@pytest.mark.parametrize(
    ("pipeline", "model", "expected"),
    [
        ([dict(type="Resize", scale=(1333, 800))], {}, 800),
        ([dict(type="mmdet.Resize", scale=(300, 500))], {}, 300),
        ([], {"data_preprocessor": {"size": (512, 256)}}, 256),
        ([], {}, 512),
    ],
)
def test_tiles_are_what_the_pipeline_does_not_shrink(pipeline, model, expected):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)), model=model))
    assert choose_tile_size(cfg) == expected
