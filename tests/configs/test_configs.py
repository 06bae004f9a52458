import ast
import re
import types
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from slide_mm.engine import ConfigError, load_config, train
from tests.configs.small import is_small
from tests.configs.steps import make_batch, train_one_step

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.py"))
LEAVES = [path for path in FILES if "_base_" not in path.parts]


def mark_large_as_slow(path):
    return pytest.param(path, id=path.stem, marks=() if is_small(path) else pytest.mark.slow)


def mark_all_but_one_a_recipe_as_slow(paths):
    """And one a family, of its smallest arch, with small heads if there are."""
    tried, marked = set(), []
    for path in sorted(paths, key=lambda path: ("cascade" in path.stem, path)):
        recipes = re.findall(r"recipes/([\w-]+)\.py", path.read_text(encoding="utf-8"))
        recipes = [recipe.replace("ms-crop-1x", "ms-crop-3x") for recipe in recipes]
        new = {*recipes, path.parent.name} - tried
        fast = new and is_small(path) and "slide-" in path.stem
        tried |= new if fast else set()
        marked.append(pytest.param(path, id=path.stem, marks=() if fast else pytest.mark.slow))
    return marked


@pytest.mark.parametrize("path", mark_all_but_one_a_recipe_as_slow(LEAVES))
def test_model_builds_and_learns_from_a_step(path):
    config = Config.fromfile(path)
    config.model.backbone.drop_path_rate = 0.0  # It may drop a block for the whole batch.
    batch = make_batch(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = revert_sync_batchnorm(MODELS.build(config.model)).train()
        model.init_weights()
        optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
        losses, same = train_one_step(model, batch, optim_wrapper)
    assert torch.isfinite(losses["loss"])
    assert not same


@pytest.mark.parametrize("path", [mark_large_as_slow(path) for path in LEAVES])
def test_training_starts_and_looks_for_its_data(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = r"^train_dataloader\.dataset\.data_root is data/\S+, which does not exist"
    with pytest.raises(ConfigError, match=missing):
        train(str(path))
    assert not any(tmp_path.iterdir())


def split_from_base(path, tmp_path):
    """What a config says itself, and what it inherits."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (statement,) = (
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_base_"
    )
    names = ast.literal_eval(statement.value)
    names = [names] if isinstance(names, str) else names
    names = [name if "::" in name else str((path.parent / name).resolve()) for name in names]
    (tmp_path / "base.py").write_text(f"_base_ = {names}")
    # What a base imports, such as MMPretrain, the config may do without.
    base = Config.fromfile(tmp_path / "base.py", import_custom_modules=False)
    tree.body.remove(statement)
    own = {"_base_": base}
    exec(compile(tree, path, "exec"), own)
    own = {name: value for name, value in own.items() if not name.startswith("_")}
    assert not any(isinstance(value, types.ModuleType) for value in own.values())
    return own, base.to_dict()


def find_repeated(own, base, key=""):
    """Keys whose value the base has already."""
    for name, value in own.items():
        if name not in base:
            continue
        if isinstance(value, dict) and isinstance(base[name], dict) and "_delete_" not in value:
            yield from find_repeated(value, base[name], f"{key}{name}.")
        elif value == base[name] or (
            isinstance(value, dict)
            and {**value, "_delete_": True} == {**base[name], "_delete_": True}
        ):
            yield key + name


@pytest.mark.parametrize(
    "path",
    [
        mark_large_as_slow(path) if path in LEAVES else pytest.param(path, id=path.stem)
        for path in FILES
        if "\n_base_ = " in "\n" + path.read_text(encoding="utf-8")
    ],
)
def test_config_repeats_nothing_that_its_base_says(path, tmp_path):
    own, base = split_from_base(path, tmp_path)
    assert not list(find_repeated(own, base))


def test_baselines_differ_by_their_stages_alone():
    """A file without `slide-` in its name has a partner with it, and changes nothing else."""
    baselines = [path for path in LEAVES if "slide-" not in path.stem]
    assert baselines
    for path in baselines:
        (partner,) = (
            other
            for other in path.parent.glob("*.py")
            if other != path and other.stem.replace("slide-", "") == path.stem
        )
        base, change = path.read_text(encoding="utf-8").splitlines()
        assert base == f'_base_ = "./{partner.name}"'
        assert change == "model = dict(backbone=dict(slide_stages=()))"


@pytest.mark.parametrize(
    "name",
    [
        "slide_swin/cascade-mask-rcnn_slide-swin-t-p4-w7_fpn_4conv1fc-giou_ms-crop-3x_coco.py",
        "slide_pvt/retinanet_slide-pvt-t_fpn_1x_coco.py",
        "slide_pvt/slide-pvt-tiny_fpn_8xb4-40k_ade20k-512x512.py",
    ],
)
def test_options_of_the_page_on_high_resolution(name):
    keys = ("test_dataloader.dataset.pipeline.1", "tta_pipeline.1.transforms.0.0")
    cfg = load_config(CONFIGS / name, {f"{key}.scale": (2000, 1200) for key in keys})
    page = (CONFIGS.parent / "docs/high_resolution.md").read_text(encoding="utf-8")
    steps = cfg.test_dataloader.dataset.pipeline[1], cfg.tta_pipeline[1].transforms[0][0]
    for key, step in zip(keys, steps, strict=True):
        assert key in page
        assert step == dict(type="Resize", scale=(2000, 1200), keep_ratio=True)
