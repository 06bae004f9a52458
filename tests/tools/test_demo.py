import importlib.util
import json
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configs_look_where_the_demo_puts_its_scenes(demo):
    for path in (demo.DETECTOR, demo.SEGMENTOR):
        config = Config.fromfile(path)
        for loader in (config.train_dataloader, config.val_dataloader):
            assert Path(loader.dataset.data_root) == demo.SCENES


def test_last_test_is_reported_in_fractions(demo, tmp_path, capsys):
    for task, name, metrics in (
        ("detection", "1", {"coco/bbox_mAP": 0.1}),
        ("detection", "2", {"coco/bbox_mAP": 0.5, "coco/segm_mAP_50": 0.75}),
        ("segmentation", "1", {"mIoU": 62.5, "aAcc": 90.0}),
    ):
        folder = tmp_path / task / "test" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.json").write_text(json.dumps(metrics))
    demo.report(tmp_path, {"detector": 90.0})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["box", "AP", "0.500"] in lines
    assert ["mask", "AP50", "0.750"] in lines
    assert ["mIoU", "0.625"] in lines
    assert ["detector,", "minutes", "1.5"] in lines


def test_failing_step_is_one_line(demo, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py"])
    monkeypatch.setattr(demo, "make_demo_scenes", lambda folder: None)
    monkeypatch.setattr(demo.shutil, "rmtree", lambda folder, ignore_errors: None)
    monkeypatch.setattr(demo, "DETECTOR", Path("missing.py"))
    monkeypatch.setattr(demo.subprocess, "run", lambda command: type("P", (), {"returncode": 1}))
    assert demo.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("demo: training the detector failed")
    assert error.count("\n") == 1
