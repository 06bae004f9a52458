"""What is said of data."""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial


class Level(IntEnum):
    """How much a finding matters.

    A fact is told. A problem is damage that a training lives with. What a training or a test
    would end with, or be wrong by without a word, is refused before it begins.
    """

    FACT = 0
    PROBLEM = 1
    REFUSAL = 2


@dataclass(frozen=True)
class Finding:
    """A line about a data set."""

    level: Level
    text: str


fact, problem, refusal = (partial(Finding, level) for level in Level)


def list_some(items: list[str], most: int = 5) -> str:
    """Join the first items of a list with commas, and count the others."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
