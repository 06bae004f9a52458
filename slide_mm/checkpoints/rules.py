"""How the tensors of another layout become ours: their names and their shapes."""

import functools
import re
from dataclasses import dataclass

from slide_mm.checkpoints.reshaping import Reshape, unchanged

# Where our backbones have what all families share.
BLOCK = "stages.{stage}.blocks.{block}."
DOWNSAMPLE = "stages.{stage}.downsample."
_PLACEHOLDER = re.compile(r"\{(\w+)([+-]1)?(?::([^}]*))?\}")
_NUM_STAGES = 4
_HALVES = {"even": r"\d*[02468]", "odd": r"\d*[13579]"}


@dataclass(frozen=True)
class Rule:
    """Where a tensor goes.

    Attributes:
        source: Name in the checkpoint. ``{stage}`` and ``{block}`` stand for our numbers, from 0,
            ``{stage+1}`` for a number that is one higher than ours, ``{even}`` and ``{odd}`` for
            twice our block's number and one more, ``{kind}`` for weight or bias, ``{layer:a|b}``
            for a or b, and ``{path}`` for all that no other rule knows.
        target: Name in our backbones; None for what they have no use for.
        reshape: Changes the shape.
    """

    source: str
    target: str | None
    reshape: Reshape = unchanged

    @property
    def part(self) -> re.Pattern[str]:
        """What the names in the checkpoint begin with, up to the first point."""
        return _compile(self.source.partition(".")[0])[0]

    def translate(self, name: str) -> str | None:
        """Return our name for a checkpoint's, an empty one if unused, None if it doesn't match."""
        pattern, offsets = _compile(self.source)
        match = pattern.fullmatch(name)
        if match is None:
            return None
        numbers = {key: int(match[key]) - offset for key, offset in offsets.items()}
        for key in _HALVES.keys() & match.groupdict():
            numbers["block"] = int(match[key]) // 2
        return self.target.format(**match.groupdict() | numbers) if self.target else ""


@dataclass(frozen=True)
class Source:
    """A layout of checkpoints.

    Attributes:
        family: Class of the backbones that it is for; None for all.
        rules: Its table. A tensor goes to the targets of all rules that match its name, and
            several tensors with one target add up.
    """

    family: str | None
    rules: tuple[Rule, ...]

    def targets(self, name: str) -> list[tuple[str, Rule]]:
        """List our names for a checkpoint's, with their rules; none if no rule matches."""
        targets = ((rule.translate(name), rule) for rule in self.rules)
        targets = [(target, rule) for target, rule in targets if target is not None]
        return [pair for pair in targets if "{path}" not in pair[1].source] or targets

    def has_part(self, name: str) -> bool:
        """Whether a checkpoint's name begins as one of the rules does, up to the first point."""
        return any(rule.part.fullmatch(name.partition(".")[0]) for rule in self.rules)


@functools.cache
def _compile(source: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Turn a rule's source into a regular expression, and the offsets of its numbers."""
    regex, offsets, end = "", {}, 0
    for placeholder in _PLACEHOLDER.finditer(source):
        key, offset, choices = placeholder.groups()
        if key in ("stage", "block"):
            offsets[key] = int(offset or 0)
        regex += re.escape(source[end : placeholder.start()])
        regex += f"(?P<{key}>{_alternatives(key, int(offset or 0), choices)})"
        end = placeholder.end()
    return re.compile(regex + re.escape(source[end:])), offsets


def _alternatives(key: str, offset: int, choices: str | None) -> str:
    if choices:
        return "|".join(map(re.escape, choices.split("|")))
    if key == "stage":
        numbers = (stage + offset for stage in range(_NUM_STAGES))
        return "|".join(str(number) for number in numbers if number >= 0)
    block = r"[1-9]\d*" if offset else r"\d+"
    return {"block": block, "kind": "weight|bias", "path": ".+", **_HALVES}[key]
