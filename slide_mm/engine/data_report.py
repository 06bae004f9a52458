"""What data a config would use, before a week of training says it."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import import_modules_from_strings, track_parallel_progress
from PIL import Image

from slide_mm.engine.config import iter_evaluators, load_config, type_name
from slide_mm.engine.data_paths import dataset_paths, iter_datasets, missing_path
from slide_mm.engine.reporting import ConfigError

SPLITS = ("train", "val", "test")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: sides change places when decoded.


@dataclass
class DatasetReport:
    """What is there of one dataset.

    Attributes:
        key: Where the config describes it, such as ``train_dataloader.dataset``.
        type: Its type.
        facts: Lines on what is there.
        problems: Lines on what is missing, broken or at odds.
    """

    key: str
    type: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def inspect_data(
    config: str, cfg_options: Mapping[str, Any] | None = None, num_workers: int | None = None
) -> Iterator[DatasetReport]:
    """Read every image and annotation that a config's training and testing would use.

    Args:
        config: Config file.
        cfg_options: Config values by dotted key.
        num_workers: Processes that read images. Default: one a core.

    Yields:
        A report for every dataset inside the splits' loaders; one that occurs again, as the test
        split often repeats the validation split, is not read again.

    Raises:
        ConfigError: If the config cannot be read, or describes no data.
    """
    cfg = load_config(config, cfg_options)
    loaders = [split for split in SPLITS if cfg.get(f"{split}_dataloader")]
    if not loaders:
        raise ConfigError(f"config {cfg.filename} has no dataloader: there is no data to check")
    import_modules_from_strings(**cfg.get("custom_imports", dict(imports=[])))
    seen: dict[str, str] = {}
    for split in loaders:
        for key, dataset in iter_datasets(cfg, split):
            report = DatasetReport(key, type_name(dataset))
            first = seen.setdefault(repr({**dataset, "pipeline": None}), key)
            if first == key:
                _inspect(report, cfg, dataset, num_workers or os.cpu_count())
            else:
                report.facts.append(f"the same as {first}")
            report.problems += _compare_evaluator(cfg, split, dataset)
            yield report


def _inspect(report: DatasetReport, cfg: Config, dataset: ConfigDict, num_workers: int) -> None:
    missing = [
        line
        for name, path in dataset_paths(dataset)
        if (line := missing_path(path, f"{report.key}.{name}", f"{report.key}.data_root"))
    ]
    if missing:
        report.problems += missing[:1] if ".data_root is" in missing[0] else missing
        return
    try:
        built = _build(cfg, dataset)
        built.data_list = listed = built.load_data_list()
        used = len(built.filter_data())
    except Exception as error:  # Annotation files can be damaged in many ways.
        reason = " ".join(str(error).split())
        report.problems.append(f"its annotations cannot be read: {type(error).__name__}: {reason}")
        return
    _describe(report, built, listed, used)
    read = partial(_find_problem, num_classes=len(built.metainfo.get("classes") or ()))
    problems = track_parallel_progress(
        read, listed, num_workers, chunksize=16, keep_order=True, file=sys.stderr
    )
    print(file=sys.stderr)
    report.problems += [problem for problem in problems if problem]


def _build(cfg: Config, dataset: ConfigDict) -> Any:
    options = {**dataset, "pipeline": [], "lazy_init": True, "serialize_data": False}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return DATASETS.build(options)


def _describe(report: DatasetReport, dataset: Any, listed: list[dict[str, Any]], used: int) -> None:
    if not listed:
        report.problems.append("it lists no images")
        return
    left_out = f", of which {used} are used (the others have nothing to learn)"
    report.facts.append(f"{len(listed)} images" + (left_out if used != len(listed) else ""))
    classes = dataset.metainfo.get("classes") or ()
    labels = Counter(
        instance["bbox_label"] for image in listed for instance in image.get("instances", ())
    )
    if labels:
        report.facts.append(f"{labels.total()} annotations of {len(labels)} classes")
        known = len(getattr(dataset, "cat_ids", classes))
        if known != len(classes):
            report.problems.append(
                f"{len(classes) - known} of the config's {len(classes)} classes are not in the "
                "annotation file: set metainfo.classes to its category names"
            )
    label_maps = sum(bool(image.get("seg_map_path")) for image in listed)
    if label_maps:
        report.facts.append(f"{label_maps} label maps, {len(classes)} classes")


def _find_problem(sample: Mapping[str, Any], num_classes: int) -> str | None:
    """Read a sample's image and label map, whole."""
    for name in ("img_path", "seg_map_path"):
        path = sample.get(name)
        if path and not Path(path).is_file():
            return f"{path} does not exist"
    try:
        size = _read_size(sample["img_path"])
    except Exception as error:  # Decoders raise many kinds.
        return f"{sample['img_path']} cannot be read: {error}"
    annotated = sample.get("width"), sample.get("height")
    if None not in annotated and annotated != size:
        return f"{sample['img_path']} is {_by(size)} pixels, and annotated as {_by(annotated)}"
    if sample.get("seg_map_path"):
        return _find_label_problem(sample, size, num_classes)
    return None


def _read_size(path: str) -> tuple[int, int]:
    """Width and height of an image that can be decoded to its end."""
    with Image.open(path) as image:
        size = image.size
        if image.getexif().get(_ORIENTATION) in _TURNED:
            size = size[::-1]
        image.draft("RGB", (1, 1))  # Decodes a JPEG coarsely, but reads all of it.
        image.load()
    return size


def _find_label_problem(
    sample: Mapping[str, Any], size: tuple[int, int], num_classes: int
) -> str | None:
    path = sample["seg_map_path"]
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except Exception as error:  # Decoders raise many kinds.
        return f"{path} cannot be read: {error}"
    if labels.ndim != 2:
        return f"{path} has {labels.shape[2]} channels: label maps have one"
    if labels.shape[::-1] != size:
        return f"{path} is {_by(labels.shape[::-1])} pixels, and its image {_by(size)}"
    largest = int(labels[labels != 255].max(initial=0))
    if num_classes and largest >= num_classes + bool(sample.get("reduce_zero_label")):
        return f"{path} has the label {largest}, and the config {num_classes} classes"
    return None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _compare_evaluator(cfg: Config, split: str, dataset: ConfigDict) -> Iterator[str]:
    """A metric that reads other annotations than the dataset makes nonsense of its figures."""
    used = dict(dataset_paths(dataset)).get("ann_file")
    for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
        if used and metric.get("ann_file") and not _same(used, metric.ann_file):
            yield (
                f"{split}_evaluator.ann_file is {metric.ann_file}, and the dataset's {used}: "
                "let both name the same file"
            )


def _same(first: str, second: str) -> bool:
    return os.path.normpath(first) == os.path.normpath(second)


def format_data_report(report: DatasetReport) -> str:
    """Lay a report out as lines of text."""
    lines = [f"{report.key} ({report.type})", *(f"  {fact}" for fact in report.facts)]
    lines += [f"  problem: {problem}" for problem in report.problems]
    return "\n".join(lines)
