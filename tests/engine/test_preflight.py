import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

from slide_mm.engine.data_paths import check_data
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.weights import load_from_slide_mm


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda dataset: dict(type="RepeatDataset", dataset=dataset), "dataset.dataset"),
        (
            lambda dataset: dict(
                type="MultiImageMixDataset",
                dataset=dict(type="ConcatDataset", datasets=[dict(type="Any"), dataset]),
            ),
            "dataset.dataset.datasets.1",
        ),
    ],
)
def test_data_inside_wrappers(tmp_path, wrap, key):
    dataset = dict(type="CocoDataset", data_root=str(tmp_path), ann_file="instances.json")
    cfg = Config(dict(train_dataloader=dict(dataset=wrap(dataset)), val_dataloader=None))
    with pytest.raises(ConfigError, match=rf"^train_dataloader.{key}.ann_file is .*instances.json"):
        check_data(cfg, ("train", "val"))
    (tmp_path / "instances.json").touch()
    check_data(cfg, ("train", "val"))


def test_remote_data_is_not_looked_for():
    petrel = dict(backend="petrel")
    datasets = [
        dict(type="CocoDataset", data_root="data/nowhere", backend_args=petrel),
        dict(type="CocoDataset", data_root="s3://nowhere/coco/"),
    ]
    concat = dict(type="ConcatDataset", datasets=datasets)
    check_data(Config(dict(test_dataloader=dict(dataset=concat))), ("test",))


def test_pretrained_weights_are_told_of_by_the_run_alone(tmp_path, caplog):
    backbone = dict(type="SlidePVTv2", arch="b0")
    torch.save(MODELS.build(backbone).state_dict(), tmp_path / "b0.pth")
    backbone["init_cfg"] = dict(type="Pretrained", checkpoint=str(tmp_path / "b0.pth"))
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    model = check_model(Config(dict(model=backbone)), pretrained=True)
    assert "covers" not in caplog.text
    model.is_init = False
    model.init_weights()
    logger.removeHandler(caplog.handler)
    assert "b0.pth (layout slide-mm) covers 100.0%" in caplog.text


def test_mmengine_reads_checkpoints_by_us_before_a_model_is_built(monkeypatch):
    """What is built may read some."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", {})
    reads = []
    model = dict(type=lambda: reads.append(CheckpointLoader._get_checkpoint_loader("a.pth")))
    check_model(Config(dict(model=model)), pretrained=False)
    assert reads == [load_from_slide_mm]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(out_features="4"), "TypeError: empty"),
        (dict(out_features=4, out_channels=4), "unexpected keyword argument 'out_channels'"),
        ({}, "missing 1 required positional argument: 'out_features'"),
    ],
)
def test_whatever_a_constructor_raises(options, said):
    cfg = Config(dict(model=dict(type=nn.Linear, in_features=3, **options)))
    with pytest.raises(
        ConfigError, match=rf"cannot build the model .*: model \(Linear\): .*{said}"
    ):
        check_model(cfg, pretrained=False)
