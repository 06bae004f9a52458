"""The models as OpenMMLab's tools list them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slide_mm.analysis.tables import Row

_DATASETS = {"coco": "COCO 2017", "ade20k": "ADE20K", "cityscapes": "Cityscapes"}


def fill_in_metafile(text: str, table_rows: Sequence[tuple[str, Row]]) -> str:
    """Replace the models in the text of a ``metafile.yml``.

    Args:
        text: The file; what stands before ``Models:`` stays.
        table_rows: The models of the file's family, each with its table.
    """
    head = text.partition("Models:")[0]
    collection = yaml.safe_load(head)["Collections"][0]["Name"]
    models = [_describe(table, row, collection) for table, row in table_rows]
    return head + yaml.safe_dump({"Models": models}, sort_keys=False)


def group_by_metafile(
    tables: Mapping[str, Sequence[Row]], configs: Path
) -> dict[Path, list[tuple[str, Row]]]:
    """Sort all rows that have a config of their own by the metafile that they stand in.

    Args:
        tables: Rows by table.
        configs: The folder ``configs/``.
    """
    groups: dict[Path, list[tuple[str, Row]]] = {}
    for table in _DATASETS:
        for row in tables[table]:
            metafile = (configs / row.config).with_name("metafile.yml")
            groups.setdefault(metafile, []).append((table, row))
    return groups


def _describe(table: str, row: Row, collection: str) -> dict[str, Any]:
    length, unit = row.schedule.split()
    training = (
        {"Epochs": int(length)}
        if unit == "epochs"
        else {"Iterations": round(1000 * float(length.removesuffix("k")))}
    )
    return {
        "Name": Path(row.config).stem,
        "In Collection": collection,
        "Config": f"configs/{row.config}",
        "Metadata": {
            "Training Data": _DATASETS[table],
            **training,
            "FLOPs": row.ours.flops,
            "Parameters": row.ours.params,
        },
    }
