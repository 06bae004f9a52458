import json
import random

import pytest
from PIL import Image

from slide_mm.analysis import list_curves, plot_runs, read_scalars
from slide_mm.analysis.logs import plot_logs
from slide_mm.engine import ConfigError


def write_log(run_dir, name, records, end=""):
    folder = run_dir / name / "vis_data"
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (folder / "scalars.json").write_text("\n".join(lines) + end)


def records_of(first, last, loss):
    return [{"loss": loss, "lr": 0.1, "step": step} for step in range(first, last, 20)]


def test_last_training_is_read(tmp_path):
    write_log(tmp_path, "20260101_000000", [{"old": 9.0, "loss": 9.0, "step": 20}])
    metrics = [{"coco/bbox_mAP": 0.5, "step": 30}, {"mIoU": 40.0}]
    write_log(tmp_path, "20260101_000001", [*records_of(20, 60, 2.0), *metrics])
    scalars = read_scalars(tmp_path)
    assert scalars == {
        "loss": [(20, 2.0), (40, 2.0)],
        "lr": [(20, 0.1), (40, 0.1)],
        "coco/bbox_mAP": [(30, 0.5)],
    }


def test_resumed_training_is_joined(tmp_path):
    """Killed at a random step, with half a line, it goes on from the checkpoint before."""
    killed = random.randrange(120, 300, 20)
    write_log(tmp_path, "1", [*records_of(20, killed, 1.0), {"mIoU": 1.0, "step": 5}], "\n{'loss")
    write_log(tmp_path, "2", [*records_of(100, 401, 2.0), {"mIoU": 2.0, "step": 105}])
    scalars = read_scalars(tmp_path)
    assert scalars["loss"] == [(step, 1.0 + (step >= 100)) for step in range(20, 401, 20)]
    assert scalars["mIoU"] == [(5, 1.0), (105, 2.0)]


def test_every_run_is_drawn_in_every_panel(tmp_path):
    runs = {
        name: {
            "time": [(20, 1.0)],
            "lr": [(20, 0.1), (40, value)],
            "loss_cls": [(20, 1.0), (40, value)],
            "epoch": [(20, 1), (40, 2)],
            "iter": [(20, 20), (40, 40)],
            "loss": [(20, 1.0), (40, value)],
            "coco/bbox_mAP": [(1, value)],
        }
        for name, value in (("first", 2.0), ("second", 3.0))
    }
    names = list_curves(runs["first"])
    assert names == ["loss", "loss_cls", "lr", "coco/bbox_mAP"]
    out = tmp_path / "curves.svg"
    plot_runs(runs, out, names, {"coco/bbox_mAP": "box AP"})
    text = out.read_text()
    for title in ("first", "second", "loss_cls", "box AP"):
        assert f"<!-- {title} -->" in text
    # One panel counts epochs.
    assert text.count("<!-- iteration -->") == 3
    assert text.count("<!-- epoch -->") == 1
    plot_runs(runs, tmp_path / "curves.png", names)
    colors = {color for _, color in Image.open(tmp_path / "curves.png").getcolors(1 << 20)}
    assert {(31, 119, 180, 255), (255, 127, 14, 255)} <= colors


@pytest.fixture
def work_dirs(tmp_path):
    curves = {"slow": [0.1, 0.2, 0.4], "fast": [0.3, 0.5, 0.4], "never": [0.0, 0.1, 0.2]}
    for name, values in curves.items():
        records = [{"mIoU": value, "step": 10 * i} for i, value in enumerate(values, 1)]
        write_log(tmp_path / name, "20260101_000000", records)
    return [str(tmp_path / "slow"), f"x=y={tmp_path / 'fast'}", str(tmp_path / "never")]


def test_first_validation_at_the_target_counts(work_dirs, tmp_path):
    out = tmp_path / "pictures" / "curves.svg"
    assert plot_logs(work_dirs, str(out)) == {}
    reached = plot_logs(work_dirs, str(out), ["mIoU"], target=0.4)
    assert list(reached.items()) == [("slow", 30), ("x=y", 20), ("never", None)]
    for name in reached:
        assert f"<!-- {name} -->" in out.read_text()


def test_what_is_not_there_is_named(work_dirs, tmp_path):
    write_log(tmp_path / "test", "1", [{"mIoU": 1.0}])
    write_log(tmp_path / "other", "1", [{"loss": 1.0, "step": 1}])
    out, other = str(tmp_path / "curves.png"), str(tmp_path / "other")
    for arguments, message in (
        (([str(tmp_path / "nowhere")], out), "nowhere holds no log of a training"),
        (([str(tmp_path / "test")], out), "test holds the log of a test"),
        ((work_dirs, out, ["loss"]), "no run has logged loss: choose among mIoU"),
        ((work_dirs, out, None, 0.4), "--target 0.4 is a value of one key"),
        (([*work_dirs, other], out, ["mIoU"], 0.4), "other has not logged mIoU"),
        ((work_dirs, str(tmp_path / "curves")), "name a file ending in .png"),
    ):
        with pytest.raises(ConfigError, match=message):
            plot_logs(*arguments)
    assert not list(tmp_path.glob("*.png"))
