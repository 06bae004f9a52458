"""What a dataset lists itself, where its files are of a kind that isn't known here."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from slide_mm.data_checks.findings import Finding, fact, list_some, problem, refusal


def describe_listed(
    listed: Sequence[dict[str, Any]], used: Sequence[dict[str, Any]], classes: Sequence[str]
) -> tuple[list[Finding], int | None]:
    """Describe samples, with ``instances`` where they have objects, or label maps.

    Args:
        listed: All samples.
        used: Those that are left after filtering.
        classes: Names of the classes.

    Returns:
        What is to be said, and the number of objects that are trained on, None of label maps.
    """
    if not listed:
        return [], None
    text = f"{len(listed)} images"
    if len(used) != len(listed):
        text += f", of which {len(used)} are used"
    findings = [fact(text)]
    maps = sum(bool(sample.get("seg_map_path")) for sample in used)
    if maps:
        findings.append(fact(f"{maps} label maps, {len(classes)} classes"))
    if not any("instances" in sample for sample in used):
        return findings, None
    objects = [
        (sample.get("img_path"), instance)
        for sample in used
        for instance in sample.get("instances", ())
    ]
    learned = [instance for _, instance in objects if not instance.get("ignore_flag")]
    text = f"{len(objects)} annotations"
    if len(learned) != len(objects):
        text += (
            f", of which {len(learned)} are used; not used: {len(objects) - len(learned)} ignored"
        )
    findings.append(fact(text))
    findings += _describe_labels([instance.get("bbox_label") for instance in learned], classes)
    findings += _check_boxes([(p, x["bbox"]) for p, x in objects if "bbox" in x])
    return findings, len(learned)


def _describe_labels(labels: Sequence[Any], classes: Sequence[str]) -> list[Finding]:
    counts = Counter(label for label in labels if isinstance(label, int))
    absent = [name for label, name in enumerate(classes) if label not in counts]
    findings = []
    if absent and counts:
        findings.append(fact(f"classes that never occur: {list_some(absent)}"))
    beyond = [label for label in counts if not 0 <= label < len(classes)] if classes else []
    if beyond:
        text = f"{sum(counts[x] for x in beyond)} annotations have a label beyond the config's "
        text += f"{len(classes)} classes, such as {max(beyond)}"
        findings.append(refusal(text))
    return findings


def _check_boxes(boxes: Sequence[tuple[Any, Any]]) -> list[Finding]:
    """Boxes as left, top, right and bottom, which are used as they are."""
    four = [(path, box) for path, box in boxes if np.shape(box) == (4,)]
    if not four:
        return []
    corners = np.array([box for _, box in four], np.float64)
    wrong = np.flatnonzero(~(corners[:, 2:] > corners[:, :2]).all(1))
    if not wrong.size:
        return []
    path, box = four[wrong[0]]
    text = f"{wrong.size} of {len(boxes)} boxes have no area (for example {list(box)} in {path})"
    return [problem(text)]
