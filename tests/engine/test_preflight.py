import os

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.data_paths import check_data
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.resuming import set_resume


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


class TestSetResume:
    @pytest.fixture
    def work_dir(self, tmp_path):
        """A training killed while it wrote the checkpoint of epoch 3."""
        for epoch in (1, 2):
            torch.save({"epoch": epoch}, tmp_path / f"epoch_{epoch}.pth")
            os.utime(tmp_path / f"epoch_{epoch}.pth", (epoch, epoch))
        (tmp_path / "epoch_3.pth").write_bytes((tmp_path / "epoch_2.pth").read_bytes()[:200])
        return tmp_path

    def resolve(self, work_dir, settings=None, resume="auto"):
        cfg = Config(dict(work_dir=str(work_dir), **(settings or {})))
        set_resume(cfg, resume)
        return cfg.get("resume"), cfg.get("load_from")

    @pytest.mark.parametrize(
        ("recorded", "taken"),
        [("epoch_1.pth", 1), ("epoch_3.pth", 2), ("epoch_0.pth", 2), (None, 2)],
        ids=["readable", "damaged", "removed", "not recorded"],
    )
    def test_takes_the_last_that_can_be_read(self, work_dir, recorded, taken):
        if recorded:
            (work_dir / "last_checkpoint").write_text(str(work_dir / recorded))
        assert self.resolve(work_dir) == (True, str(work_dir / f"epoch_{taken}.pth"))

    def test_refuses_when_none_can_be_read(self, work_dir):
        for epoch in (1, 2):
            (work_dir / f"epoch_{epoch}.pth").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
            self.resolve(work_dir)

    def test_starts_as_the_config_says_without_any(self, tmp_path):
        pretrained = dict(resume=False, load_from="pretrained.pth")
        assert self.resolve(tmp_path / "nothing", pretrained) == (False, "pretrained.pth")

    def test_what_config_and_command_line_say(self, work_dir):
        last = str(work_dir / "epoch_2.pth")
        assert self.resolve(work_dir, dict(load_from="a.pth"), "b.pth") == (True, "b.pth")
        assert self.resolve(work_dir, dict(load_from="a.pth"), "auto") == (True, last)
        assert self.resolve(work_dir, dict(load_from="a.pth"), None) == (None, "a.pth")
        in_config = dict(resume=True, load_from="a.pth")
        assert self.resolve(work_dir, in_config, None) == (True, "a.pth")
        assert self.resolve(work_dir, dict(resume=True), None) == (True, last)


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


def test_bugs_in_a_constructor_keep_their_traceback():
    """A constructor that refuses its arguments is the config's fault, one that fails is not."""
    cfg = Config(dict(model=dict(type=nn.Linear, in_features=3, out_features="4")))
    with pytest.raises(TypeError, match=r"empty\(\)"):
        check_model(cfg, pretrained=False)
    cfg.model.out_channels = 4
    with pytest.raises(ConfigError, match="unexpected keyword argument 'out_channels'"):
        check_model(cfg, pretrained=False)
