"""What data a config would use, before a week of training says it."""

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.utils import ProgressBar

from slide_mm.data_checks.findings import Finding, Level, list_some
from slide_mm.data_checks.samples import Sample, SampleReader, Seen
from slide_mm.engine.config import iter_evaluators, iter_nodes, load_config, type_name
from slide_mm.engine.consistency import compare_zero_labels, find_inconsistencies
from slide_mm.engine.data_paths import dataset_paths, iter_datasets
from slide_mm.engine.dataset_checks import Checked, check_dataset, is_same_file
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError, log_once

SPLITS = ("train", "val", "test")
_MOST_LINES = 10
_MODEL_KEY = "the config against itself"


@dataclass
class DatasetReport:
    """What is there of one dataset.

    Attributes:
        key: Where the config describes it, such as ``train_dataloader.dataset``.
        type: Its type.
        findings: What is to be said of it.
    """

    key: str
    type: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def facts(self) -> list[str]:
        """Lines on what is there."""
        return [finding.text for finding in self.findings if finding.level == Level.FACT]

    @property
    def problems(self) -> list[str]:
        """Lines on what is missing, broken or at odds."""
        return [finding.text for finding in self.findings if finding.level > Level.FACT]


def check_annotations(cfg: Config, splits: tuple[str, ...]) -> None:
    """Refuse data that a run would end with or be wrong by, and log what is there of the rest.

    Annotation files are read, images are not.

    Args:
        cfg: The config.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the run will use.

    Raises:
        ConfigError: With the first finding.
    """
    for split in splits:
        objects: list[int | None] = []
        for key, dataset in iter_datasets(cfg, split):
            checked = check_dataset(cfg, split, key, dataset)
            for finding in checked.findings:
                if finding.level == Level.REFUSAL:
                    raise ConfigError(f"{key}: {finding.text}")
            objects.append(checked.num_objects)
            log_once(f"{key}: " + "; ".join(finding.text for finding in checked.findings))
        line = _find_nothing(split, objects)
        if line:
            raise ConfigError(line)


def _find_nothing(split: str, objects: list[int | None]) -> str | None:
    """Say that a training has no object to learn from, whose datasets load them."""
    if split == "train" and objects and None not in objects and not sum(objects):
        return (
            "train_dataloader has no annotation that is used, so that nothing can be learnt: "
            "tools/misc/check_data.py tells why"
        )
    return None


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
        split often repeats the validation split, is not read again. A last one tells what in the
        config is at odds with itself, if there is such.

    Raises:
        ConfigError: If the config cannot be read, or describes no data.
    """
    cfg = load_config(config, cfg_options)
    splits = [split for split in SPLITS if cfg.get(f"{split}_dataloader")]
    if not splits:
        raise ConfigError(f"config {cfg.filename} has no dataloader: there is no data to check")
    seen: dict[str, str] = {}
    for split in splits:
        for key, dataset in iter_datasets(cfg, split):
            report = DatasetReport(key, type_name(dataset))
            metrics = [*iter_evaluators(cfg.get(f"{split}_evaluator"))]
            first = seen.setdefault(f"{metrics} {_identify(dataset)}", key)
            if first == key:
                report.findings = _inspect(cfg, split, key, dataset, num_workers, seen)
            else:
                report.findings = [Finding(Level.FACT, f"the same as {first}")]
            report.findings += _compare_evaluator(cfg, split, dataset)
            yield report
    lines = [*_compare_parts(cfg, splits)]
    if lines:
        findings = [Finding(Level.REFUSAL, line) for line in lines]
        yield DatasetReport(_MODEL_KEY, type_name(cfg.get("model")), findings)


def _identify(dataset: ConfigDict) -> str:
    """The same for datasets that read the same files in the same way."""
    loading = [x for _, x in iter_nodes(dataset.get("pipeline")) if type_name(x).startswith("Load")]
    return repr({**dataset, "pipeline": loading})


def _inspect(
    cfg: Config,
    split: str,
    key: str,
    dataset: ConfigDict,
    num_workers: int | None,
    seen: dict[str, str],
) -> list[Finding]:
    checked = check_dataset(cfg, split, key, dataset)
    if split == "train" and checked.num_objects == 0:
        checked.add(Level.PROBLEM, "no annotation is used: there is nothing to learn")
    first = seen.setdefault(f"images {_identify(dataset)}", key)
    if first == key:
        _read_samples(cfg, split, dataset, checked, num_workers or os.cpu_count() or 1)
    else:
        checked.add(Level.FACT, f"images as in {first}")
    return checked.findings


def _compare_parts(cfg: Config, splits: list[str]) -> Iterator[str]:
    """What train.py and test.py refuse before they run, where the config has a model."""
    if not cfg.get("model"):
        yield from compare_zero_labels(cfg, None, splits)
        return
    try:
        model = check_model(cfg, pretrained=False)
    except ConfigError as error:
        yield str(error)
    else:
        yield from find_inconsistencies(cfg, model, splits)


def _compare_evaluator(cfg: Config, split: str, dataset: ConfigDict) -> Iterator[Finding]:
    """A metric that reads other annotations than the dataset makes nonsense of its figures."""
    used = dict(dataset_paths(dataset)).get("ann_file")
    for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
        if used and metric.get("ann_file") and not is_same_file(used, metric.ann_file):
            yield Finding(
                Level.PROBLEM,
                f"{split}_evaluator.ann_file is {metric.ann_file}, and the dataset's {used}: "
                "let both name the same file",
            )


def _read_samples(
    cfg: Config, split: str, dataset: ConfigDict, checked: Checked, num_workers: int
) -> None:
    """Read the images and label maps, and add what is found."""
    if not checked.samples:
        return
    try:
        reader = _build_reader(cfg, dataset, checked)
    except Exception as error:  # A pipeline may be wrong in many ways.
        reason = " ".join(str(error).split())
        checked.add(Level.REFUSAL, f"its pipeline cannot be built: {reason}")
        return
    seen = []
    progress = ProgressBar(len(checked.samples), file=sys.stderr)
    try:
        for result in _read_all(reader, checked.samples, num_workers):
            seen.append(result)
            progress.update()
    except BrokenProcessPool:
        path = checked.samples[len(seen)]["img_path"]
        text = f"reading {path} or one of the next images ends a process: is it too large?"
        checked.add(Level.PROBLEM, text)
    print(file=sys.stderr)
    for line in _list_problems(seen):
        checked.add(Level.PROBLEM, line)
    checked.findings += _describe_labels(seen, split, checked.dataset.metainfo.get("classes"))


def _read_all(reader: SampleReader, samples: list[Sample], num_workers: int) -> Iterator[Seen]:
    if num_workers == 1:
        yield from map(reader, samples)
        return
    with ProcessPoolExecutor(num_workers, None, _keep_reader, (reader,)) as pool:
        yield from pool.map(_read, samples, chunksize=16)


def _list_problems(seen: list[Seen]) -> Iterator[str]:
    """A line for each broken file, or one for many that are broken in the same way."""
    paths: dict[str, list[str]] = {}
    for result in seen:
        if result.path:
            paths.setdefault(result.problem, []).append(result.path)
    for problem, files in paths.items():
        if len(files) > _MOST_LINES:
            yield f"{len(files)} files ({list_some(files)}): {problem}"
        else:
            yield from (f"{path} {problem}" for path in files)


_READER: list[SampleReader] = []


def _keep_reader(reader: SampleReader) -> None:
    _READER[:] = [reader]


def _read(sample: Sample) -> Seen:
    return _READER[0](sample)


def _build_reader(cfg: Config, dataset: ConfigDict, checked: Checked) -> SampleReader:
    """Build the steps of a dataset's pipeline that load; without any, those that are usual."""
    has_objects = "instances" in checked.samples[0]
    has_segments = "segments_info" in checked.samples[0]
    steps = [x for x in dataset.get("pipeline") or () if type_name(x).startswith("Load")]
    if not steps:
        labels = {"type": "mmseg.LoadAnnotations"}
        if has_objects:
            labels = {"type": "mmdet.LoadAnnotations", "with_seg": True}
        steps = [{"type": "mmcv.LoadImageFromFile"}, labels]
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        built = [(type_name(step), TRANSFORMS.build(step)) for step in steps]
    images = [step for name, step in built if "Annotation" not in name]
    labels = [step for name, step in built if "Annotation" in name]
    labels = [step for step in labels if getattr(step, "with_seg", True)]
    ignored = [node.get("ignore_index") for _, node in iter_nodes(cfg.get("model"))]
    classes = checked.dataset.metainfo.get("classes")
    return SampleReader(
        load_image=images[0],
        load_labels=labels[0] if labels and not has_segments else None,
        num_classes=len(classes) if classes and not has_objects else None,
        ignored=[255, *(value for value in ignored if isinstance(value, int))],
    )


def _describe_labels(seen: list[Seen], split: str, classes: Any) -> Iterator[Finding]:
    """Labels that occur in the maps."""
    pixels = sum(result.pixels for result in seen)
    if not pixels or not classes:
        return
    labels = frozenset().union(*(result.labels for result in seen))
    absent = [name for label, name in enumerate(classes) if label not in labels]
    ignored = sum(result.ignored for result in seen)
    if absent:
        text = f"classes that never occur: {list_some([*map(str, absent)])}"
        yield Finding(Level.FACT, text)
    if ignored:
        yield Finding(Level.FACT, f"{ignored / pixels:.1%} of the pixels are ignored")
    if split == "train" and len(labels) < min(2, len(classes)):
        only = ", ".join(str(classes[x]) for x in labels if x < len(classes)) or "no class"
        yield Finding(
            Level.PROBLEM,
            f"the label maps show {only} alone, and {ignored / pixels:.1%} of their pixels are "
            "ignored: number the classes from 0 (from 1 with reduce_zero_label=True); 255 is none",
        )


def format_data_report(report: DatasetReport) -> str:
    """Lay a report out as lines of text."""
    lines = [f"{report.key} ({report.type})" if report.type else report.key]
    lines += [f"  {fact}" for fact in report.facts]
    lines += [f"  problem: {problem}" for problem in report.problems]
    return "\n".join(lines)
