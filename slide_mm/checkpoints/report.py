"""What a conversion did, for people."""

import math
import re
from dataclasses import dataclass, field

from slide_mm.checkpoints.compare import CheckpointMismatchError

NO_PLACE = "no place in the model"
NO_PART = "of no part of a backbone"
MISSING = "not given: keeps the model's own values"
GIVE_ANOTHER = "give the checkpoint of this architecture, or the arch of this checkpoint"
_HEAD = "head."


@dataclass(frozen=True)
class Entry:
    """A tensor in a report.

    Attributes:
        name: Name in the model; of what is left over, name in the checkpoint.
        numel: Number of its parameters.
        note: What was done to it, or why it is left over.
    """

    name: str
    numel: int
    note: str = ""


@dataclass
class ConversionReport:
    """What became of every tensor of a checkpoint and of a model.

    Attributes:
        origin: The checkpoint, for messages.
        source: Its layout, one of ``SOURCES``.
        model: Class of the model.
        copied: Taken over, in another order of rows at most.
        resampled: Tables interpolated to another size.
        initialised: Not in the checkpoint.
        left_over: Not in the model.
    """

    origin: str
    source: str
    model: str
    copied: list[Entry] = field(default_factory=list)
    resampled: list[Entry] = field(default_factory=list)
    initialised: list[Entry] = field(default_factory=list)
    left_over: list[Entry] = field(default_factory=list)

    @property
    def covered(self) -> int:
        """Parameters of the backbone that come from the checkpoint."""
        return _count_backbone(self.copied) + _count_backbone(self.resampled)

    @property
    def misplaced(self) -> list[Entry]:
        """Weights for which the model has no place, though it has for their kind."""
        return [entry for entry in self.left_over if entry.note == NO_PLACE]

    @property
    def coverage(self) -> float:
        """Covered parameters over those of the backbone and the misplaced ones, from 0 to 1."""
        unfit = _count_backbone(self.initialised) + _count_backbone(self.misplaced)
        return self.covered / max(self.covered + unfit, 1)

    def require(self, minimum: float) -> None:
        """Refuse weights of another architecture.

        Args:
            minimum: Smallest coverage to accept, from 0 to 1.

        Raises:
            CheckpointMismatchError: If the coverage is below; the message names what doesn't fit.
        """
        if self.coverage >= minimum:
            return
        missing = [entry for entry in self.initialised if entry.note == MISSING]
        problems = [f"{entry.name} is not in the checkpoint" for entry in missing]
        problems = [f"{entry.name} is not in the model" for entry in self.misplaced] or problems
        raise CheckpointMismatchError(
            f"{self.origin} does not fit {self.model}: {_percent(self.coverage)} of the "
            f"parameters are covered (at least {_percent(minimum)} must be); first misfit: "
            f"{problems[0]}; {GIVE_ANOTHER}"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.origin} (layout {self.source}) covers {_percent(self.coverage)} of "
            f"{self.model}: {self.covered:,} parameters"
        ]
        for label in ("copied", "resampled", "initialised", "left_over"):
            entries = getattr(self, label)
            numel = sum(entry.numel for entry in entries)
            title = label.replace("_", " ")
            lines.append(f"{title:<12}{len(entries):>5} tensors {numel:>12,} parameters")
            if label != "copied":
                lines += [f"    {line}" for line in _group(entries)]
        return "\n".join(lines)


def _percent(fraction: float) -> str:
    """Rounded down: 100.0% is all."""
    return f"{math.floor(1000 * fraction) / 10}%"


def _count_backbone(entries: list[Entry]) -> int:
    return sum(entry.numel for entry in entries if not entry.name.startswith(_HEAD))


def _group(entries: list[Entry]) -> list[str]:
    """One line for the same tensor of all blocks of a stage: only a name's first number stays."""
    lines = {}
    for entry in entries:
        if entry.note == NO_PART:
            part = entry.name.partition(".")[0] + (".*" if "." in entry.name else "")
            lines[f"{part}  {NO_PART}"] = None
            continue
        first, *others = re.split(r"(?<=\d)(?=\D|$)", entry.name, maxsplit=1)
        name = first + re.sub(r"\d+", "*", "".join(others))
        lines[f"{name}  {entry.note}".rstrip()] = None
    return list(lines)
