import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from slide_mm.engine.consistency import find_inconsistencies

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["mmdet", "mmseg"])
def test_config_examples_work_in_a_foreign_project(example, tmp_path):
    (tmp_path / "slide_mm").symlink_to(ROOT)
    path = tmp_path / "my_project" / "config.py"
    path.parent.mkdir()
    path.write_text(example)
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 64, 96), mode="tensor")
        maps = model.extract_feat(torch.zeros(1, 3, 256, 256))
    assert type(model.backbone).__module__.startswith("slide_mm.models")
    assert len(outputs) > 0
    if hasattr(model, "bbox_head"):
        strides = [width for width, _ in model.bbox_head.prior_generator.strides]
        assert [256 // x.shape[-1] for x in maps] == strides
    assert not list(find_inconsistencies(config, model, splits=("train", "val", "test")))


def test_every_path_named_exists():
    paths = re.findall(r"(?:configs|docs|projects|tools)/[\w./-]+\.(?:md|py|sh)", README)
    links = re.findall(r"\]\(([^):]+)\)", README)
    assert paths
    assert links
    for name in paths + links:
        assert (ROOT / name).exists(), name
