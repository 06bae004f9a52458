"""How a config's dataset reads its files, and what is to be said of them before it does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS, DefaultScope

from slide_mm.data_checks.coco_file import CocoFile, read_coco
from slide_mm.data_checks.coco_findings import (
    check_categories,
    check_metric_keys,
    count_unlike_images,
    describe_usage,
)
from slide_mm.data_checks.coco_usage import Reading, Usage, find_usage
from slide_mm.data_checks.findings import Finding, Level, list_some, problem, refusal
from slide_mm.data_checks.listed import describe_listed
from slide_mm.data_checks.reasons import Reason
from slide_mm.data_checks.samples import Sample, find_missing, sample_paths
from slide_mm.engine.config import iter_evaluators, iter_nodes, type_name
from slide_mm.engine.data_paths import find_missing_paths, is_local

_COCO_DATASETS = (
    *("CocoDataset", "CocoPanopticDataset", "LVISV05Dataset", "LVISV1Dataset"),
    "Objects365V1Dataset",
)


@dataclass
class DatasetReport:
    """What is there of a dataset.

    Attributes:
        key: Where the config describes it, such as ``train_dataloader.dataset``.
        type: Its type.
        findings: What is to be said of it.
        dataset: The dataset, built without its annotations; None where that failed.
        samples: What it hands to its pipeline, without the objects.
        num_objects: How many objects it trains on; None where they aren't known or not loaded.
    """

    key: str
    type: str
    findings: list[Finding] = field(default_factory=list)
    dataset: Any = None
    samples: list[Sample] = field(default_factory=list)
    num_objects: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.key} ({self.type})" if self.type else self.key]
        lines += [f"  {fact}" for fact in self.facts]
        return "\n".join([*lines, *(f"  problem: {problem}" for problem in self.problems)])

    @property
    def facts(self) -> list[str]:
        """Lines on what is there."""
        return [finding.text for finding in self.findings if finding.level == Level.FACT]

    @property
    def problems(self) -> list[str]:
        """Lines on what is missing, broken or at odds."""
        return [finding.text for finding in self.findings if finding.level > Level.FACT]

    def add(self, level: Level, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, text))


def check_dataset(cfg: Config, split: str, key: str, config: ConfigDict) -> DatasetReport:
    """Look at the folders and annotations of a split's dataset, its images unread."""
    report = DatasetReport(key, type_name(config))
    missing = find_missing_paths(key, config)
    for line in [missing["data_root"]] if "data_root" in missing else missing.values():
        report.add(Level.REFUSAL, line)
    if {"data_root", "ann_file"} & set(missing):
        return report
    try:
        report.dataset = build_dataset(cfg, config)
        if not isinstance(report.dataset, BaseDataset):
            report.add(Level.FACT, f"{len(report.dataset)} samples, of a kind of its own")
        elif is_coco(report.dataset):
            _check_coco(report, cfg, split, config)
        elif not missing:
            _check_listed(report, config)
    except Exception as error:  # Annotation files can be damaged in many ways.
        reason = " ".join(str(error).split())
        text = f"its annotations cannot be read: {type(error).__name__}: {reason}"
        report.add(Level.REFUSAL, text)
        return report
    if not missing:
        _check_files(report, split, config)
    return report


def build_dataset(cfg: Config, config: ConfigDict) -> Any:
    """Build a dataset without a pipeline; MMEngine's without reading its annotations."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = config.type if isinstance(config.type, type) else registry.get(config.type)
        options = {**config}
        if isinstance(kind, type) and issubclass(kind, BaseDataset):
            options |= {"pipeline": [], "lazy_init": True, "serialize_data": False}
        return DATASETS.build(options)


def is_coco(dataset: BaseDataset) -> bool:
    """Whether a dataset reads COCO's format by MMDetection's own rules, which are known here."""
    methods = [getattr(type(dataset), x, None) for x in ("load_data_list", "parse_data_info")]
    return all(
        getattr(method, "__module__", "").startswith("mmdet.datasets.")
        and method.__qualname__.partition(".")[0] in _COCO_DATASETS
        for method in methods
    )


def describe_reading(dataset: BaseDataset, config: ConfigDict) -> Reading:
    """Tell how a dataset of MMDetection reads its annotation file."""
    kinds = {kind.__name__ for kind in type(dataset).__mro__}
    filters = getattr(dataset, "filter_cfg", None) or {}
    masks = [
        step
        for _, step in iter_nodes(config.get("pipeline"))
        if type_name(step) == "LoadAnnotations" and step.get("with_mask")
    ]
    return Reading(
        classes=dataset.metainfo.get("classes") or (),
        panoptic="CocoPanopticDataset" in kinds,
        sort_categories="Objects365V1Dataset" in kinds,
        all_categories="LVISV05Dataset" in kinds,
        filters=not dataset.test_mode and bool(filters),
        filter_empty=filters.get("filter_empty_gt", False),
        filter_crowds="CityscapesDataset" in kinds,
        min_size=filters.get("min_size", 0),
        indices=dataset._indices,
        masks=bool(masks),
        only_polygons=any(not step.get("poly2mask", True) for step in masks),
    )


def loads_objects(config: ConfigDict) -> bool:
    """Whether a dataset's pipeline loads annotations."""
    names = [type_name(step) for _, step in iter_nodes(config.get("pipeline"))]
    return any("Annotations" in name and "Empty" not in name for name in names)


def _check_coco(report: DatasetReport, cfg: Config, split: str, config: ConfigDict) -> None:
    dataset = report.dataset
    reading = describe_reading(dataset, config)
    with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
        file = read_coco(path)
    usage = find_usage(file, reading)
    is_v1 = any(kind.__name__ == "LVISV1Dataset" for kind in type(dataset).__mro__)
    name_key = "coco_url" if is_v1 else "file_name"
    report.findings += describe_usage(dataset.ann_file, file, usage, reading, name_key)
    report.findings += _check_metrics(cfg, split, dataset, file, usage)
    if loads_objects(config):
        report.num_objects = int(usage.used.sum())
    if all(finding.level < Level.REFUSAL for finding in report.findings):
        report.samples = list(_list_samples(dataset, file, usage, reading, name_key))


def _check_metrics(
    cfg: Config, split: str, dataset: BaseDataset, file: CocoFile, usage: Usage
) -> Iterator[Finding]:
    """What CocoMetric needs of its annotations, which are to be those of the dataset."""
    for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
        ann_file = metric.get("ann_file")
        if type_name(metric) != "CocoMetric" or not ann_file or metric.get("format_only"):
            continue
        scored, scored_usage = file, usage
        if not is_same_file(dataset.ann_file, ann_file):
            reading = Reading(classes=dataset.metainfo.get("classes") or ())
            try:
                with get_local_path(ann_file, backend_args=metric.get("backend_args")) as path:
                    scored = read_coco(path)
            except (OSError, ValueError) as error:
                text = f"{ann_file}, which the metric scores, cannot be read: {error}"
                yield refusal(text)
                continue
            scored_usage = find_usage(scored, reading)
            yield from check_categories(ann_file, scored, scored_usage, reading)
        kinds = metric.get("metric", "bbox")
        kinds = kinds if isinstance(kinds, list | tuple) else [kinds]
        yield from check_metric_keys(ann_file, scored, scored_usage, masks="segm" in kinds)
        unlike = count_unlike_images(usage, file, scored)
        if unlike:
            yield problem(
                f"the dataset and {ann_file}, which the metric scores, differ in {unlike} images: "
                "those that the dataset lacks count as missed",
            )


def is_same_file(first: str, second: str) -> bool:
    """Whether two paths name the same file, by whatever way."""
    if is_local(first) and is_local(second):
        return os.path.realpath(first) == os.path.realpath(second)
    return first == second


def _list_samples(
    dataset: BaseDataset, file: CocoFile, usage: Usage, reading: Reading, name_key: str
) -> Iterator[Sample]:
    """What a COCO dataset hands to its pipeline, without the objects."""
    segments: dict[int, list[dict[str, Any]]] = {}
    if reading.panoptic:
        for row in np.flatnonzero(usage.used | (usage.reasons == Reason.CROWD)):
            segment = {"id": file.annotations[row]["id"], "category": int(usage.label_of[row])}
            segments.setdefault(int(usage.image_of[row]), []).append(segment)
    for index in np.flatnonzero(usage.image_used):
        image = file.images[index]
        name = _file_name(image[name_key], reading, name_key)
        seg_map = None
        if dataset.data_prefix.get("seg"):
            stem = name.replace(".jpg", "") if reading.panoptic else name.rsplit(".", 1)[0]
            suffix = ".png" if reading.panoptic else dataset.seg_map_suffix
            seg_map = os.path.join(dataset.data_prefix["seg"], stem + suffix)
        sample = {
            "img_path": os.path.join(dataset.data_prefix["img"], name),
            "img_id": image["id"],
            "seg_map_path": seg_map,
            "width": image["width"],
            "height": image["height"],
            "instances": [],
        }
        if reading.panoptic:
            sample["segments_info"] = segments.get(int(index), [])
        yield sample


def _file_name(name: str, reading: Reading, name_key: str) -> str:
    """As LVIS's datasets take names of COCO's images."""
    if name_key == "coco_url":
        return name.replace("http://images.cocodataset.org/", "")
    return name[-16:] if reading.all_categories and name.startswith("COCO") else name


def _check_listed(report: DatasetReport, config: ConfigDict) -> None:
    """What a dataset of another kind lists itself."""
    dataset = report.dataset
    dataset.data_list = listed = dataset.load_data_list()
    dataset.data_list = used = dataset.filter_data()
    if dataset._indices is not None:
        used = dataset._get_unserialized_subset(dataset._indices)
    findings, num_objects = describe_listed(listed, used, dataset.metainfo.get("classes") or ())
    report.findings += findings
    report.num_objects = num_objects if loads_objects(config) else None
    report.samples = [
        {**sample, "instances": []} if "instances" in sample else sample for sample in used
    ]
    if not listed:
        report.add(Level.REFUSAL, f"it lists no images{_explain_suffix(dataset, 'img_suffix')}")


def _explain_suffix(dataset: BaseDataset, name: str) -> str:
    """Say which suffix a segmentation dataset looked for, and what is there."""
    suffix = getattr(dataset, name, None)
    prefix = {"img_suffix": "img_path", "seg_map_suffix": "seg_map_path"}[name]
    folder = dataset.data_prefix.get(prefix)
    if not suffix or not folder or not os.path.isdir(folder):
        return ""
    names = sorted({os.path.splitext(file)[1] for _, _, files in os.walk(folder) for file in files})
    return f": {name} is {suffix!r}, and {folder} has files in {list_some(names) or 'no suffix'}"


def _check_files(report: DatasetReport, split: str, config: ConfigDict) -> None:
    """Whether every image and label map is there."""
    dataset = report.dataset
    backend = (config.get("backend_args") or {}).get("backend", "local")
    paths = [path for sample in report.samples for path in sample_paths(sample)]
    if backend != "local" or not all(isinstance(path, str) and is_local(path) for path in paths):
        return
    missing = find_missing(paths)
    if not missing:
        return
    absent = set(missing)
    report.samples = [x for x in report.samples if not absent & set(sample_paths(x))]
    others = [path for path in missing if os.path.exists(path)]
    if others:  # Loading would wait for what comes out of a pipe.
        report.add(Level.REFUSAL, f"{others[0]} is a folder, a pipe or a device: put a file there")
        return
    # A training passes over them, as long as there are others.
    level = Level.PROBLEM if split == "train" and report.samples else Level.REFUSAL
    hint = "" if report.samples else _explain_suffix(dataset, "seg_map_suffix")
    text = f"{len(missing)} of {len(paths)} files do not exist: {list_some(missing)}{hint}"
    report.add(level, f"{missing[0]} does not exist" if len(missing) == 1 and not hint else text)
