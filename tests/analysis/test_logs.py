import json

import pytest
from PIL import Image

from slide_mm.analysis import plot_run, read_scalars


def write_log(run_dir, name, records):
    folder = run_dir / name / "vis_data"
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (folder / "scalars.json").write_text("\n".join(lines))


def test_last_run_is_read_and_plotted(tmp_path):
    write_log(tmp_path, "20260101_000000", [{"loss": 9.0, "step": 20}, {"loss": 8.0, "step": 40}])
    records = [{"loss": 2.0, "lr": 0.1, "step": 20}, {"coco/bbox_mAP": 0.5, "step": 30}]
    write_log(tmp_path, "20260101_000001", [*records, {"mIoU": 40.0}])
    scalars = read_scalars(tmp_path)
    assert scalars == {"loss": [(20, 2.0)], "lr": [(20, 0.1)], "coco/bbox_mAP": [(30, 0.5)]}
    out = tmp_path / "curves.png"
    plot_run(scalars, {"coco/bbox_mAP": "box AP"}, out, "a run")
    assert len(Image.open(out).convert("RGB").getcolors(1 << 20)) > 10


def test_resumed_run_counts_as_one(tmp_path):
    first = [{"loss": 3.0 - step / 20, "step": step} for step in (20, 40, 60)]
    write_log(tmp_path, "20260101_000000", first)
    write_log(tmp_path, "20260101_000001", [{"loss": 0.5, "step": 60}, {"loss": 0.4, "step": 80}])
    assert read_scalars(tmp_path)["loss"] == [(20, 2.0), (40, 1.0), (60, 0.5), (80, 0.4)]


def test_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no log"):
        read_scalars(tmp_path)
