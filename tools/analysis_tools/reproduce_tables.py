"""Count every row of the paper's tables, and every config, and compare with the published figures.

The tables in configs/*/README.md are written anew, and the models in configs/*/metafile.yml.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from slide_mm.analysis import (
    TABLES,
    Row,
    count_row,
    fill_in_metafile,
    fill_in_readme,
    format_comparison,
    group_by_metafile,
    group_by_readme,
    list_configs,
)
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/analysis_tools/reproduce_tables.py --table coco --json counts.json
"""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--table", choices=TABLES, help="only this table (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the exact counts, too")
    return parser.parse_args()


def count_table(table: str) -> list[Row]:
    configs = list_configs(table, CONFIGS)
    rows = []
    for index, config in enumerate(configs, start=1):
        print(f"{table}: {index}/{len(configs)} {config}", file=sys.stderr, flush=True)
        rows.append(count_row(table, config, CONFIGS))
    return rows


def main() -> None:
    args = parse_args()
    tables = {table: count_table(table) for table in ([args.table] if args.table else TABLES)}
    for table, rows in tables.items():
        height, width = TABLES[table].image_size
        print(f"\n{table}, {height} x {width}\n\n{format_comparison(table, rows)}")
        for readme, group in group_by_readme(rows, CONFIGS).items():
            text = readme.read_text(encoding="utf-8")
            readme.write_text(fill_in_readme(text, table, group), encoding="utf-8")
    if not args.table:
        for metafile, models in group_by_metafile(tables, CONFIGS).items():
            text = metafile.read_text(encoding="utf-8")
            metafile.write_text(fill_in_metafile(text, models), encoding="utf-8")
    if args.json:
        counts = {table: [to_dict(row) for row in rows] for table, rows in tables.items()}
        args.json.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def to_dict(row: Row) -> dict:
    return {**dataclasses.asdict(row), "ours": row.ours._asdict()}


if __name__ == "__main__":
    main()
