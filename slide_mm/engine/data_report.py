"""What data a config would use, before a week of training says it."""

import io
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.utils import ProgressBar

from slide_mm.data_checks.findings import Finding, Level, list_some
from slide_mm.data_checks.samples import Sample, SampleReader, Seen
from slide_mm.engine.config import iter_evaluators, iter_nodes, load_config, type_name
from slide_mm.engine.consistency import compare_zero_labels, find_inconsistencies
from slide_mm.engine.data_paths import dataset_paths, iter_datasets
from slide_mm.engine.dataset_checks import DatasetReport, check_dataset, is_same_file
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError, log_once

SPLITS = ("train", "val", "test")
_MOST_LINES = 10


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
            report = check_dataset(cfg, split, key, dataset)
            for finding in report.findings:
                if finding.level == Level.REFUSAL:
                    raise ConfigError(f"{key}: {finding.text}")
            objects.append(report.num_objects)
            log_once(f"{key}: " + "; ".join(finding.text for finding in report.findings))
        if split == "train" and objects and None not in objects and not sum(objects):
            raise ConfigError(
                "train_dataloader has no annotation that is used, so that nothing can be learnt: "
                "tools/misc/check_data.py tells why"
            )


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
            metrics = [*iter_evaluators(cfg.get(f"{split}_evaluator"))]
            first = seen.setdefault(f"{metrics} {_identify(dataset)}", key)
            if first == key:
                report = _inspect(cfg, split, key, dataset, num_workers, seen)
            else:
                report = DatasetReport(key, type_name(dataset))
                report.add(Level.FACT, f"the same as {first}")
            report.findings += _compare_evaluator(cfg, split, dataset)
            yield report
    report = DatasetReport("the config against itself", type_name(cfg.get("model")))
    for line in _compare_parts(cfg, splits):
        report.add(Level.REFUSAL, line)
    if report.findings:
        yield report


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
) -> DatasetReport:
    report = check_dataset(cfg, split, key, dataset)
    if split == "train" and report.num_objects == 0:
        report.add(Level.PROBLEM, "no annotation is used: there is nothing to learn")
    first = seen.setdefault(f"images {_identify(dataset)}", key)
    if first == key:
        _read_samples(cfg, split, dataset, report, num_workers or os.cpu_count() or 1)
    else:
        report.add(Level.FACT, f"images as in {first}")
    return report


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
    cfg: Config, split: str, dataset: ConfigDict, report: DatasetReport, num_workers: int
) -> None:
    """Read the images and label maps, and add what is found."""
    if not report.samples:
        return
    try:
        reader = _build_reader(cfg, dataset, report)
    except Exception as error:  # A pipeline may be wrong in many ways.
        reason = " ".join(str(error).split())
        report.add(Level.REFUSAL, f"its pipeline cannot be built: {reason}")
        return
    seen = []
    # A log has no use for a bar.
    progress = ProgressBar(
        len(report.samples), file=sys.stderr if sys.stderr.isatty() else io.StringIO()
    )
    try:
        for result in _read_all(reader, report.samples, num_workers):
            seen.append(result)
            progress.update()
    except BrokenProcessPool:
        path = report.samples[len(seen)]["img_path"]
        text = f"reading {path} or one of the next images ends a process: is it too large?"
        report.add(Level.PROBLEM, text)
    print(file=sys.stderr)
    for line in _list_problems(seen):
        report.add(Level.PROBLEM, line)
    report.findings += _describe_labels(seen, split, report.dataset.metainfo.get("classes"))


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


def _build_reader(cfg: Config, dataset: ConfigDict, report: DatasetReport) -> SampleReader:
    """Build the steps of a dataset's pipeline that load; without any, those that are usual."""
    has_objects = "instances" in report.samples[0]
    has_segments = "segments_info" in report.samples[0]
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
    classes = report.dataset.metainfo.get("classes")
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
