import json

import pytest
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from slide_mm.packing.metrics import describe_training, find_metrics

BY_EPOCH = Config()
BY_ITERATION = Config(dict(default_hooks=dict(logger=dict(log_metric_by_epoch=False))))
NAME = "digits_20261127_231700"


@pytest.fixture
def run(tmp_path):
    """A run's checkpoint, which isn't read, and its log: one of these 3 epochs of 2 iterations."""
    records = [
        {"lr": 0.1, "loss": 3.0, "epoch": 1, "iter": 2, "step": 2},
        {"coco/bbox_mAP": 0.1, "data_time": 0.2, "time": 0.3, "step": 1},
        {"coco/bbox_mAP": 0.2, "data_time": 0.2, "time": 0.3, "step": 2},
    ]
    for time, factor in (("20261127_231700", 1), ("20261127_235900", 3)):
        log = tmp_path / time / "vis_data" / "scalars.json"
        log.parent.mkdir(parents=True)
        record = {"coco/bbox_mAP": factor * 0.2, "step": 2}
        log.write_text("\n".join(map(json.dumps, [*records[:2], {**records[2], **record}])) + "\n{")
    return tmp_path / "epoch_2.pth"


def content_of(epoch, iteration, running, best=None, **meta):
    """A checkpoint's content: ``running`` is the epoch, from 0, that it was saved in."""
    info = {"epoch": running, **({"best_ckpt": best} if best else {})}
    scalars = {
        "train/loss": HistoryBuffer([3.0], [1]),
        "val/time": HistoryBuffer([0.3], [1]),
        "val/coco/bbox_mAP": HistoryBuffer([0.1, 0.7], [1, 1]),
    }
    meta = {"epoch": epoch, "iter": iteration, "experiment_name": NAME, **meta}
    return {"meta": meta, "message_hub": {"runtime_info": info, "log_scalars": scalars}}


def test_log_of_the_run_that_wrote_the_checkpoint(run):
    assert find_metrics(run, content_of(2, 4, running=1), BY_EPOCH) == {"coco/bbox_mAP": 0.2}
    other = content_of(2, 4, running=1, experiment_name="digits_20261127_235900")
    assert find_metrics(run, other, BY_EPOCH)["coco/bbox_mAP"] == pytest.approx(0.6)
    assert find_metrics(run, content_of(1, 2, 1), BY_ITERATION) == {"coco/bbox_mAP": 0.2}


@pytest.mark.parametrize(
    "content",
    [
        content_of(3, 6, running=2),  # Not validated.
        content_of(2, 5, running=2),  # Trained on, after the validation.
        content_of(2, 4, running=1, experiment_name="another_20260101_000000"),
        content_of(2, 5, running=2, best="runs/best_coco_bbox_mAP_epoch_2.pth"),
        content_of(3, 6, running=2, best="runs/best_coco_bbox_mAP_epoch_2.pth"),
        {"meta": {}},
        {"meta": {"epoch": "2", "iter": None}, "message_hub": {"runtime_info": None}},
    ],
)
def test_none_of_another_iteration(run, content):
    assert find_metrics(run, content, BY_EPOCH) == {}


def test_checkpoint_saved_after_its_validation_has_its_own(run):
    by_epoch = content_of(2, 4, running=1, best="runs/best_coco_bbox_mAP_epoch_2.pth")
    by_iteration = content_of(0, 4, running=0, best="runs/best_mIoU_iter_4.pth")
    for content in (by_epoch, by_iteration):
        assert find_metrics(run, content, BY_EPOCH) == {"coco/bbox_mAP": 0.7}


def test_length_of_the_training():
    assert describe_training(content_of(2, 40, 1)) == "2 epochs, 40 iterations"
    assert describe_training(content_of(0, 1, 0)) == "1 iteration"
    assert describe_training({"meta": {}}) == ""
