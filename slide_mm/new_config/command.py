"""Writing a config for a folder of data."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import get_task, iter_evaluators, iter_nodes, load_config, type_name
from slide_mm.engine.outputs import check_output
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.detection import DetectionData, find_detection
from slide_mm.new_config.recipe import drop_masks, fit_schedule, scale_images, set_num_classes
from slide_mm.new_config.segmentation import SegmentationData, find_segmentation
from slide_mm.new_config.writing import changes_of, name_values, render


def write_config(
    base: str,
    data: str | Path,
    out: str | Path,
    configs: str | Path,
    num_gpus: int = 1,
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Write a config that trains another config's model on a folder of data.

    Args:
        base: Config file of a detector or segmentor, or the beginning of the name of one in
            ``configs``.
        data: Folder of the data; see :func:`~slide_mm.new_config.detection.find_detection` and
            :func:`~slide_mm.new_config.segmentation.find_segmentation`.
        out: File to write.
        configs: Folder to look a name up in.
        num_gpus: GPUs that will train. The learning rate is fitted to the batch over all.
        epochs: Length of the training. Default: enough for some thousand iterations.
        batch_size: Images a GPU. Default: the config's.
        image_size: Short side of images for testing, in pixels; all other sizes change with it.
        weights: Checkpoint that the backbone starts from, of any known source.
        seed: Of the drawing of validation images, where nothing says which they are.

    Returns:
        Lines that say what was found and decided.

    Raises:
        ConfigError: If the config, the folder or an option is wrong.
        CheckpointError: If the weights cannot be read or don't fit.
    """
    _check_numbers(gpus=num_gpus, epochs=epochs, batch_size=batch_size, image_size=image_size)
    root, out = Path(data), check_output(out, (".py",))
    if not root.is_dir():
        raise ConfigError(f"--data is {data}: give a folder of images and annotations")
    base = _find_base(base, Path(configs))
    if out.resolve() == base.resolve():
        raise ConfigError(f"--out is {out}, which the new config inherits: give another name")
    before = load_config(base)
    after = copy.deepcopy(before)
    if batch_size:
        after.train_dataloader.batch_size = batch_size
    use = _use_detection if get_task(before) == "mmdet" else _use_segmentation
    lines, num_images = use(after, root, seed)
    number, iterations = fit_schedule(after, num_images, num_gpus, epochs)
    if image_size:
        scale_images(after, image_size)
    if weights:
        after.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=weights)
        check_model(after, pretrained=True)
    _write(before, after, base, out)
    lr = after.optim_wrapper.optimizer.lr
    batch = f"{after.train_dataloader.batch_size} images"
    batch += f" on each of {num_gpus} GPUs" if num_gpus > 1 else ""
    lines.append(f"{number} epochs, {iterations} iterations of {batch}, learning rate {lr:.2g}")
    if not after.model.get("backbone", {}).get("init_cfg"):
        lines.append("the backbone learns from scratch: --weights lets it start from a checkpoint")
    return lines


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is {number}: give a positive number")


def _find_base(base: str, configs: Path) -> Path:
    """A config file, by its path or by the beginning of its name; the shortest name counts."""
    if Path(base).is_file():
        return Path(base)
    name = base.removesuffix(".py")
    ours = (x for x in configs.glob("slide_*/*.py") if name and x.name.startswith(name))
    found = sorted(ours, key=lambda x: len(x.name))
    if not found:
        raise ConfigError(
            f"there is no config {base}: give a file, or the beginning of the name of one in "
            f"{configs}, such as mask-rcnn_slide-swin-t"
        )
    return found[0]


def _use_detection(cfg: Config, root: Path, seed: int) -> tuple[list[str], int]:
    found = find_detection(root, seed)
    lines = [
        f"{found.layout}: {_count('class', found.classes)}: {', '.join(found.classes)}",
        *found.notes,
        *(
            f"{name}: {split.num_images} images, {split.num_objects} objects, {split.ann_file}"
            for name, split in found.splits.items()
        ),
    ]
    for split in ("train", "val", "test"):
        _point_detection(cfg, root, found, split)
    set_num_classes(cfg, len(found.classes))
    if found.num_without_mask:
        total = sum(split.num_objects for split in found.splits.values())
        line = f"{found.num_without_mask} of {total} objects have no mask"
        lines += [line, *filter(None, [drop_masks(cfg, line)])]
    return lines, found.splits["train"].num_images


def _point_detection(cfg: Config, root: Path, found: DetectionData, split: str) -> None:
    used = found.splits.get(split, found.splits["val"])
    dataset = _innermost(cfg[f"{split}_dataloader"].dataset)
    dataset.update(
        type="CocoDataset",
        data_root=f"{root}/",
        metainfo=dict(classes=found.classes),
        ann_file=used.ann_file.relative_to(root).as_posix(),
        data_prefix=dict(img=_prefix(used.images, root)),
    )
    for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
        if type_name(metric) != "CocoMetric":
            raise ConfigError(
                f"{split}_evaluator is {type_name(metric)} in {cfg.filename}: choose a config "
                "that is scored by CocoMetric"
            )
        metric.ann_file = str(used.ann_file)


def _use_segmentation(cfg: Config, root: Path, seed: int) -> tuple[list[str], int]:
    found = find_segmentation(root, seed)
    lines = [
        f"label maps: {_count('class', found.classes)}: {', '.join(found.classes)}",
        *(
            f"{name}: {len(split.names)} images in {split.images}, label maps in {split.labels}"
            for name, split in found.splits.items()
        ),
    ]
    for split in ("train", "val", "test"):
        _point_segmentation(cfg, root, found, split)
    for _, step in iter_nodes([cfg.get("tta_pipeline")]):
        step.pop("reduce_zero_label", None)
    set_num_classes(cfg, len(found.classes))
    return lines, len(found.splits["train"].names)


def _point_segmentation(cfg: Config, root: Path, found: SegmentationData, split: str) -> None:
    used = found.splits.get(split, found.splits["val"])
    dataset = _innermost(cfg[f"{split}_dataloader"].dataset)
    dataset.update(
        type="BaseSegDataset",
        data_root=f"{root}/",
        metainfo=dict(classes=found.classes),
        data_prefix=dict(
            img_path=_prefix(used.images, root), seg_map_path=_prefix(used.labels, root)
        ),
        img_suffix=used.image_suffix,
        seg_map_suffix=used.label_suffix,
    )
    if used.listed:
        dataset.ann_file = used.listed.relative_to(root).as_posix()
    for _, step in iter_nodes(dataset.pipeline):
        step.pop("reduce_zero_label", None)


def _innermost(dataset: ConfigDict) -> ConfigDict:
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def _prefix(folder: Path, root: Path) -> str:
    return "" if folder == root else f"{folder.relative_to(root)}/"


def _count(word: str, items: Sequence[Any]) -> str:
    return f"1 {word}" if len(items) == 1 else f"{len(items)} {word}es"


def _write(before: Config, after: Config, base: Path, out: Path) -> None:
    changes = changes_of(before.to_dict(), after.to_dict())
    dataset = _innermost(after.train_dataloader.dataset)
    names = {"classes": dataset.metainfo.classes, "data_root": dataset.data_root}
    inherited = os.path.relpath(base.resolve(), out.resolve().parent)
    lines = [f"_base_ = {render(inherited)}"]
    lines += [f"{name} = {render(value, used=len(name) + 3)}" for name, value in names.items()]
    earlier: dict[str, str] = {}  # What validation and test share is written once.
    for key, value in changes.items():
        if key not in names:
            code = render(name_values(value, names), used=len(key) + 3)
            lines.append(f"{key} = {earlier.get(code, code)}")
            if code.startswith("dict("):
                earlier.setdefault(code, key)
    with write_atomically(out) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
