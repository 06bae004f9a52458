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
from slide_mm.analysis.tables import format_readme_table
from slide_mm.models import FAMILIES
from tests.configs.small import is_small

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = read_paper()


@pytest.fixture(scope="module", params=["small", pytest.param("all", marks=pytest.mark.slow)])
def tables(request, read_each_config_once):
    """Rows by table, those of the smallest archs or all; counting takes a second a config."""
    return {
        table: [
            count_row(table, config, CONFIGS)
            for config in list_configs(table, CONFIGS)
            if request.param == "all" or is_small(Path(config))
        ]
        for table in TABLES
    }


@pytest.mark.parametrize(("table", "number"), [("coco", 50), ("ade20k", 28), ("imagenet", 31)])
def test_every_published_row_has_its_config(table, number):
    """Of what the families' papers print and heads here have."""
    assert len(PAPER[table]) == number
    assert all((CONFIGS / config).is_file() for config in PAPER[table])


def is_near(ours, published, **tolerance):
    return published is None or ours == pytest.approx(published, **tolerance)


def test_models_cost_what_is_published_or_a_note_says_why_not(tables):
    for table in ("coco", "ade20k"):
        for row in (row for row in tables[table] if row.paper):
            near = is_near(row.ours.flops / 1e9, row.paper["flops_g"], rel=0.01)
            near &= is_near(row.ours.params / 1e6, row.paper["params_m"], abs=0.5)
            assert near != (row.name in PAPER["notes"]), row.name


def test_classifiers_cost_what_the_paper_prints_or_a_note_says_why_not(tables):
    for row in tables["imagenet"]:
        near = is_near(row.ours.flops / 1e9, row.paper["flops_g"], rel=0.02)
        near &= is_near(row.ours.params / 1e6, row.paper["params_m"], rel=0.02)
        assert near != (row.name in PAPER["notes"]), row.name


def count_slide_attention_params(num_heads, head_dim):
    """Beyond the four linear layers: learned kernels, their biases, position biases."""
    return 81 * head_dim + 9 * head_dim + 9 * num_heads


def test_notes_by_hand():
    names = ("Swin-T", "Slide-Swin-T", "Swin-S", "Slide-Swin-S", "PVTv2-B1", "Slide-PVTv2-B1")
    configs = {row["name"]: config for config, row in PAPER["imagenet"].items()}
    ours = {name: count_row("imagenet", configs[name], CONFIGS).ours.params for name in names}
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


def test_attention_that_slides_in_nat_by_hand():
    """Of NAT-T's first stages, three blocks of 56 x 56 tokens and four of 28 x 28."""
    configs = {row["name"]: config for config, row in PAPER["imagenet"].items()}
    slides, stays = (
        count_row("imagenet", configs[name], CONFIGS).ours.flops
        for name in ("Slide-NAT-T", "NAT-T")
    )
    added = (180 - 98) * (3 * 64 * 56**2 + 4 * 128 * 28**2)
    assert slides - stays == added == pytest.approx(0.08e9, rel=0.05)


def test_zeros_in_stripes_by_hand(tables):
    """Of CSWin-T's third stage for 512 x 2048 pixels, 32 x 128 tokens in stripes of 7."""
    rows, columns, dims = 3 * 128 * (7 * 128), 5 * 32 * (7 * 32), 128
    assert 21 * 2 * dims * (rows + columns) == pytest.approx(2.0e9, rel=0.03)
    (row,) = (row for row in tables["ade20k"] if row.name.startswith("cswin-tiny_fpn"))
    assert row.ours.flops / 1e9 == pytest.approx(204.6, abs=0.05)
    assert row.ours.flops / 1e9 - 2.0 == pytest.approx(row.paper["flops_g"], rel=0.01)


@pytest.mark.slow
def test_every_arch_has_its_configs():
    """For detection and for segmentation; the paper's rows name further ones."""
    backbones = {
        (name, cfg.model.backbone.type, cfg.model.backbone.arch)
        for name in ("coco", "ade20k")
        for cfg in map(
            Config.fromfile, CONFIGS.glob(TABLES[name].pattern.replace("/*", "/*slide-*"))
        )
    }
    assert backbones >= {
        (name, family.backbone.__name__, arch)
        for name in ("coco", "ade20k")
        for family in FAMILIES.values()
        for arch in family.backbone.arch_zoo
    }


STALE = "is stale: run python tools/analysis_tools/reproduce_tables.py"


def squeeze(text):
    """Cells without the blanks that make columns even."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_rows_in_the_readmes_are_fresh(tables):
    for table, rows in tables.items():
        groups = group_by_readme(rows, CONFIGS)
        assert groups
        for readme, group in groups.items():
            text = readme.read_text(encoding="utf-8")
            assert f"<!-- {table} -->" in text
            lines = squeeze(format_readme_table(table, group))[2:]
            assert set(lines) <= set(squeeze(text)), f"{readme} {STALE}"


def test_models_in_the_metafiles_are_fresh(tables):
    for metafile, models in group_by_metafile(tables, CONFIGS).items():
        text = metafile.read_text(encoding="utf-8")
        names = [row.name for _, row in models]
        listed = yaml.safe_load(text)["Models"]
        written = yaml.safe_load(fill_in_metafile(text, models))["Models"]
        assert [x for x in listed if x["Name"] in names] == written, f"{metafile} {STALE}"


@pytest.mark.parametrize("tables", ["all"], indirect=True)
@pytest.mark.slow
def test_tables_and_metafiles_are_written_as_they_are(tables):
    for table, rows in tables.items():
        for readme, group in group_by_readme(rows, CONFIGS).items():
            text = readme.read_text(encoding="utf-8")
            assert fill_in_readme(text, table, group) == text, f"{readme} {STALE}"
    for metafile, models in group_by_metafile(tables, CONFIGS).items():
        text = metafile.read_text(encoding="utf-8")
        assert fill_in_metafile(text, models) == text, f"{metafile} {STALE}"


def test_model_index_lists_every_config():
    index = yaml.safe_load((CONFIGS.parent / "model-index.yml").read_text(encoding="utf-8"))
    metafiles = [CONFIGS.parent / path for path in index["Import"]]
    assert set(metafiles) == set(CONFIGS.glob("*/metafile.yml"))
    listed = [yaml.safe_load(path.read_text(encoding="utf-8"))["Models"] for path in metafiles]
    names = [model["Config"] for models in listed for model in models]
    assert sorted(names) == sorted(
        str(path.relative_to(CONFIGS.parent)) for path in CONFIGS.glob("slide_*/*.py")
    )
