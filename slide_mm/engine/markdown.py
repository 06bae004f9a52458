"""Tables."""

from collections.abc import Sequence


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out as a table in Markdown whose columns line up in a terminal too."""
    columns = zip(header, *lines, strict=True)
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    rule = ["-" * width for width in widths]
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (header, rule, *lines)
    )
    return "\n".join(f"| {line} |" for line in padded)
