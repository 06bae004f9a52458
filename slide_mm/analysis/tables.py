"""The paper's tables beside our own counts."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict

from slide_mm.analysis.complexity import (
    Complexity,
    build_to_count,
    count_complexity,
    count_flops,
)
from slide_mm.engine.markdown import format_table
from slide_mm.models import FAMILIES


class Table(NamedTuple):
    """What a table of the paper is about.

    Attributes:
        pattern: Configs of the table, below ``configs/``.
        image_size: Height and width that operations are counted for, in pixels.
        accuracies: Headline by column of the accuracies to show.
        digits: Digits after the point of our counts.
    """

    pattern: str
    image_size: tuple[int, int]
    accuracies: Mapping[str, str]
    digits: int


TABLES = {
    "coco": Table("slide_*/*_coco*.py", (800, 1280), {"box_ap": "box AP", "mask_ap": "mask AP"}, 1),
    "ade20k": Table("slide_*/*_ade20k-512x512.py", (512, 2048), {"miou": "mIoU"}, 1),
    "cityscapes": Table("slide_*/*_cityscapes-*.py", (1024, 2048), {"miou": "mIoU"}, 1),
    # No configs: nothing here trains classifiers.
    "imagenet": Table("", (224, 224), {"top1": "top-1"}, 2),
}
COMPARISON = (
    *("GFLOPs, paper", "GFLOPs, ours", "difference"),
    *("params (M), paper", "params (M), ours", "difference"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        config: Config below ``configs/``; for ImageNet, one with the same backbone.
        name: What the row is called.
        schedule: Length of the training, such as ``'12 epochs'``.
        ours: What was counted.
        paper: Published figures by column, empty where the paper has no such row.
    """

    config: str
    name: str
    schedule: str
    ours: Complexity
    paper: Mapping[str, Any]


def read_paper() -> dict[str, Any]:
    """Read the paper's figures.

    Returns:
        For each of ``TABLES`` the rows as dicts by column, by their config; and the ``source`` and
        the ``notes`` on rows as they stand in the file.
    """
    path = Path(__file__).with_name("paper_results.json")
    paper = json.loads(path.read_text(encoding="utf-8"))
    for name in TABLES:
        rows = [dict(zip(paper[name]["columns"], row, strict=True)) for row in paper[name]["rows"]]
        paper[name] = {row["config"]: row for row in rows}
    return paper


def list_configs(table: str, configs: Path) -> list[str]:
    """List the configs of a table's rows: first those of the paper, in its order.

    Args:
        table: One of ``TABLES``.
        configs: The folder ``configs/``.
    """
    published = list(read_paper()[table])
    pattern = TABLES[table].pattern
    found = [str(path.relative_to(configs)) for path in configs.glob(pattern)] if pattern else []
    return published + sorted(set(found) - set(published))


def count_row(table: str, config: str, configs: Path) -> Row:
    """Count a row of a table.

    Args:
        table: One of ``TABLES``.
        config: See :class:`Row`.
        configs: The folder ``configs/``.
    """
    cfg = Config.fromfile(configs / config)
    paper = read_paper()[table].get(config, {})
    size = TABLES[table].image_size
    if table == "imagenet":
        ours = count_classifier(cfg.model.backbone, size)
    else:
        ours = count_complexity(build_to_count(cfg), size)
    epochs = cfg.train_cfg.get("max_epochs")
    schedule = f"{epochs} epochs" if epochs else f"{cfg.train_cfg.max_iters / 1000:g}k iterations"
    return Row(config, paper.get("name", Path(config).stem), schedule, ours, paper)


def count_classifier(backbone: ConfigDict, image_size: tuple[int, int]) -> Complexity:
    """Count the classifier of ImageNet's 1000 kinds on a backbone.

    Args:
        backbone: Config of the backbone of a detector or segmentor.
        image_size: Height and width of the image, in pixels.
    """
    options = dict(backbone)
    name = options.pop("type")
    (classifier,) = (x.classifier for x in FAMILIES.values() if x.backbone.__name__ == name)
    with torch.device("meta"):
        model = classifier(**options).eval()
        flops = count_flops(lambda: model(torch.empty(1, 3, *image_size)))
    return Complexity(flops, sum(parameter.numel() for parameter in model.parameters()))


def format_comparison(table: str, rows: Sequence[Row]) -> str:
    """Show paper and counts side by side.

    Returns:
        A table in Markdown.
    """
    lines = [[row.name, *_compare(table, row)] for row in rows]
    return format_table(["", *COMPARISON], lines)


def format_readme_table(table: str, rows: Sequence[Row]) -> str:
    """Show counts, and the accuracies that the paper publishes, for a README beside the configs.

    Returns:
        A table in Markdown, with notes, whose last columns are empty: they are for accuracies of
        models trained with these configs.
    """
    published = [f"{name}, published" for name in TABLES[table].accuracies.values()]
    trained = [f"{name}, trained here" for name in TABLES[table].accuracies.values()]
    names = ["backbone"] if table == "imagenet" else ["config", "schedule"]
    lines = []
    for row in rows:
        link = [f"[{row.name}]({Path(row.config).name})", row.schedule]
        accuracies = [_show(row.paper.get(column)) for column in TABLES[table].accuracies]
        name = [row.name] if table == "imagenet" else link
        lines.append([*name, *_compare(table, row), *accuracies, *[""] * len(trained)])
    text = format_table([*names, *COMPARISON, *published, *trained], lines)
    notes = read_paper()["notes"]
    bullets = [f"- {notes[row.name]}" for row in rows if row.name in notes]
    return "\n".join([text, *([""] if bullets else []), *bullets])


def fill_in_readme(text: str, table: str, rows: Sequence[Row]) -> str:
    """Replace a table in the text of a README.

    Args:
        text: The README, with the comments ``<!-- coco -->`` and ``<!-- end coco -->`` around
            that table, and likewise around the others. Without them it stays as it is.
        table: One of ``TABLES``.
        rows: Those of the README's family.
    """
    block = re.compile(rf"(<!-- {table} -->\n).*(<!-- end {table} -->)", flags=re.DOTALL)
    filled = f"\n{format_readme_table(table, rows)}\n\n"
    return block.sub(lambda found: found[1] + filled + found[2], text)


def group_by_readme(rows: Sequence[Row], configs: Path) -> dict[Path, list[Row]]:
    """Sort rows by the README that they stand in, that of their config's folder."""
    groups: dict[Path, list[Row]] = {}
    for row in rows:
        groups.setdefault((configs / row.config).with_name("README.md"), []).append(row)
    return groups


def _compare(table: str, row: Row) -> list[str]:
    """Cells of the columns of ``COMPARISON``."""
    digits = TABLES[table].digits
    flops, params = row.ours.flops / 1e9, row.ours.params / 1e6
    paper_flops, paper_params = row.paper.get("flops_g"), row.paper.get("params_m")
    percent = paper_flops and _signed(100 * (flops / paper_flops - 1), 1) + " %"
    difference = paper_params and _signed(params - paper_params, digits)
    return [
        *(_show(paper_flops), f"{flops:.{digits}f}", _show(percent)),
        *(_show(paper_params), f"{params:.{digits}f}", _show(difference)),
    ]


def _show(figure: Any) -> str:
    return "" if figure is None else str(figure)


def _signed(number: float, digits: int) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # No -0.0.
