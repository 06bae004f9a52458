from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from slide_mm.analysis import (
    TABLES,
    count_row,
    fill_in_metafile,
    fill_in_readme,
    group_by_metafile,
    group_by_readme,
    list_configs,
    read_paper,
)
from slide_mm.models import FAMILIES

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = read_paper()


@pytest.fixture(scope="module")
def tables(read_each_config_once):
    """All rows, by table."""
    return {
        table: [count_row(table, config, CONFIGS) for config in list_configs(table, CONFIGS)]
        for table in TABLES
    }


@pytest.mark.parametrize(("table", "number"), [("coco", 18), ("ade20k", 8)])
def test_models_cost_what_the_paper_prints(tables, table, number):
    rows = [row for row in tables[table] if row.paper]
    assert len(rows) == number
    for row in rows:
        flops, params = row.ours.flops / 1e9, row.ours.params / 1e6
        assert flops == pytest.approx(row.paper["flops_g"], rel=0.01), row.name
        assert params == pytest.approx(row.paper["params_m"], abs=0.5), row.name


def test_classifiers_cost_what_the_paper_prints_or_a_note_says_why_not(tables):
    assert len(tables["imagenet"]) == 14
    for row in tables["imagenet"]:
        assert row.ours.flops / 1e9 == pytest.approx(row.paper["flops_g"], rel=0.02), row.name
        as_printed = row.ours.params / 1e6 == pytest.approx(row.paper["params_m"], rel=0.02)
        assert as_printed != (row.name in PAPER["imagenet_notes"]), row.name


def count_slide_attention_params(num_heads, head_dim):
    """Beyond the four linear layers: learned kernels, their biases, position biases."""
    return 81 * head_dim + 9 * head_dim + 9 * num_heads


def test_notes_by_hand(tables):
    ours = {row.name: row.ours.params for row in tables["imagenet"]}
    added = 2 * sum(
        count_slide_attention_params(heads, 32) - 13**2 * heads for heads in (3, 6)
    )  # Two blocks each; without the windows' position tables.
    assert ours["Slide-Swin-T"] - ours["Swin-T"] == added == pytest.approx(0.009e6, abs=500)
    assert ours["Slide-Swin-S"] - ours["Swin-S"] == added
    assert pytest.approx(0.12e6, rel=0.01) == 18 * 12 * (27**2 - 13**2)
    lost = 2 * sum((ratio * c) ** 2 + c + 2 * c for c, ratio in ((64, 8), (128, 4)))
    gained = 2 * sum(count_slide_attention_params(heads, 64) for heads in (1, 2))
    assert ours["PVTv2-B1"] - ours["Slide-PVTv2-B1"] == lost - gained
    assert lost == pytest.approx(1.05e6, rel=0.01)
    assert gained == pytest.approx(0.02e6, abs=5000)


def test_every_arch_has_its_configs():
    """For detection and for segmentation; the paper's rows name further ones."""
    backbones = {
        (name, cfg.model.backbone.type, cfg.model.backbone.arch)
        for name in ("coco", "ade20k")
        for cfg in map(Config.fromfile, CONFIGS.glob(TABLES[name].pattern))
        if cfg.model.backbone.get("slide_stages") != ()
    }
    assert backbones >= {
        (name, family.backbone.__name__, arch)
        for name in ("coco", "ade20k")
        for family in FAMILIES.values()
        for arch in family.backbone.arch_zoo
    }


def test_tables_in_the_readmes_are_fresh(tables):
    for table, rows in tables.items():
        groups = group_by_readme(rows, CONFIGS)
        assert groups
        for readme, group in groups.items():
            text = readme.read_text(encoding="utf-8")
            assert f"<!-- {table} -->" in text
            assert fill_in_readme(text, table, group) == text, (
                f"{readme} is stale: run python tools/analysis_tools/reproduce_tables.py"
            )


def test_model_index_is_fresh_and_lists_every_config(tables):
    index = yaml.safe_load((CONFIGS.parent / "model-index.yml").read_text(encoding="utf-8"))
    groups = group_by_metafile(tables, CONFIGS)
    assert {CONFIGS.parent / path for path in index["Import"]} == set(groups)
    names = []
    for metafile, models in groups.items():
        text = metafile.read_text(encoding="utf-8")
        assert fill_in_metafile(text, models) == text, (
            f"{metafile} is stale: run python tools/analysis_tools/reproduce_tables.py"
        )
        names += [model["Config"] for model in yaml.safe_load(text)["Models"]]
    assert sorted(names) == sorted(
        str(path.relative_to(CONFIGS.parent)) for path in CONFIGS.glob("slide_*/*.py")
    )
