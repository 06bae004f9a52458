import json

import pytest
from PIL import Image

from slide_mm.engine import ConfigError
from slide_mm.engine.comparison import compare_runs


@pytest.fixture
def work_dirs(tmp_path):
    curves = {"slow": [0.1, 0.2, 0.4], "fast": [0.3, 0.5, 0.4], "never": [0.0, 0.1, 0.2]}
    for name, values in curves.items():
        folder = tmp_path / name / "20260101_000000" / "vis_data"
        folder.mkdir(parents=True)
        lines = [json.dumps({"mIoU": value, "step": 10 * i}) for i, value in enumerate(values, 1)]
        (folder / "scalars.json").write_text("\n".join(lines))
    return {name: str(tmp_path / name) for name in curves}


def test_first_validation_at_the_target_counts(work_dirs, tmp_path):
    out = tmp_path / "pictures" / "curves.png"
    reached = compare_runs(work_dirs, "mIoU", 0.4, str(out))
    assert reached == {"slow": 30, "fast": 20, "never": None}
    assert len(Image.open(out).convert("RGB").getcolors(1 << 20)) > 10


def test_folder_without_the_metric_is_named(work_dirs, tmp_path):
    out = tmp_path / "curves.png"
    with pytest.raises(ConfigError, match="slow holds no training with coco/bbox_mAP"):
        compare_runs(work_dirs, "coco/bbox_mAP", 0.4, str(out))
    with pytest.raises(ConfigError, match="nowhere holds no training"):
        compare_runs({"a": str(tmp_path / "nowhere")}, "mIoU", 0.4, str(out))
    assert not out.exists()
