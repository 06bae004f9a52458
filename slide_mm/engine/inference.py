"""Predictions on images, drawn and written down."""

import glob
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmseg.apis import MMSegInferencer
from mmseg.structures import SegDataSample
from pycocotools import mask as mask_utils
from rich.progress import Progress

from slide_mm.engine.config import get_task, load_config, require_keys
from slide_mm.engine.outputs import check_device, make_folder, write_atomically
from slide_mm.engine.preflight import check_checkpoint, check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.tiling import Tile, Track, detect_by_tiles, make_tiles, segment_by_tiles

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# An image with a side longer than so many tiles is predicted tile by tile.
_MAX_TILES_WHOLE = 4
_DEFAULT_TILE_SIZE = 512
# Masks that are drawn at a time, in bytes; each takes one a pixel.
_MASK_MEMORY = 512 << 20
_MAX_LABELLED_PIXELS = 2 << 20


def infer(
    config: str,
    checkpoint: str,
    inputs: str,
    out: str | None = None,
    score_thr: float = 0.3,
    device: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Predict on images, draw the predictions and write them down.

    Args:
        config: Config file of a detector or segmentor.
        checkpoint: Weights of its model.
        inputs: An image, a folder of images, or a pattern such as ``'images/*.jpg'``.
        out: Folder for ``results.json``, ``pictures/`` and, for segmentation, ``labels/``. Default:
            ``inference`` in the config's work folder.
        score_thr: Least score of a detection that is drawn and written down.
        device: Where to compute. Default: what MMEngine finds.

    Returns:
        The folder, and what its ``results.json`` holds: ``images``, a record each, and
        ``unreadable``, names.

    Raises:
        ConfigError: If the config or an option is wrong, or none of the images can be read.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    cfg = load_config(config)
    require_keys(cfg, "inference", "model", "test_dataloader", "visualizer")
    cfg.load_from = checkpoint
    paths = find_images(inputs)
    device = str(check_device(device or get_device()))
    check_checkpoint(cfg, check_model(cfg, pretrained=False), whole=True)
    out = make_folder(out or Path(cfg.work_dir, "inference"))

    task = {"mmdet": Detection, "mmseg": Segmentation}[get_task(cfg)](cfg, device, score_thr)
    results = {"config": config, "checkpoint": checkpoint, "classes": task.classes}
    results |= {"images": [], "unreadable": []}
    with Progress() as progress:
        for name, path in progress.track(paths.items(), len(paths), description="images"):
            image = read_image(path)
            if image is None:
                progress.console.print(f"cannot be read, passed over: {path}", soft_wrap=True)
                results["unreadable"].append(name)
                continue
            size = {"height": image.shape[0], "width": image.shape[1]}
            record = task.run(image, name, out, partial(_track_tiles, progress))
            results["images"].append({"file": name, **size, **record})
    if not results["images"]:
        raise ConfigError(f"{inputs}: none of its {len(paths)} images can be read")
    with write_atomically(out / "results.json") as file:
        file.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return out, results


def find_images(inputs: str) -> dict[str, Path]:
    """List an image, the images of a folder or those that a pattern matches.

    Returns:
        Paths by names that are different: what the paths don't share.

    Raises:
        ConfigError: If there are none.
    """
    if os.path.isdir(inputs):
        paths = [path for path in Path(inputs).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    elif os.path.exists(inputs):
        paths = [Path(inputs)]
    else:
        paths = [Path(path) for path in glob.glob(inputs, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise ConfigError(f"{inputs} holds no images: give an image, a folder of them or a pattern")
    common = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(common).as_posix(): path for path in sorted(paths)}


def read_image(path: Path) -> np.ndarray | None:
    """Read an image as (H, W, 3) in BGR, or None if that is impossible."""
    try:
        return mmcv.imread(path)
    except (OSError, cv2.error):  # Unreadable, or larger than OpenCV takes.
        return None


def choose_tile_size(cfg: Config) -> int:
    """Side of a square that the test pipeline doesn't shrink, or else of the training images."""
    for transform in cfg.test_dataloader.dataset.get("pipeline", ()):
        if transform.type == "Resize" and transform.get("scale"):
            return min(transform.scale)
    size = (cfg.model.get("data_preprocessor") or {}).get("size")
    return min(size) if size else _DEFAULT_TILE_SIZE


class Task:
    """What a kind of model does with an image.

    Args:
        cfg: The config, whose ``load_from`` names a checkpoint that fits.
        device: Where to compute.
        score_thr: Least score of a detection.
    """

    def __init__(self, cfg: Config, device: str, score_thr: float) -> None:
        self.tile_size = choose_tile_size(cfg)
        self.score_thr = score_thr
        self.inferencer = self.build_inferencer(cfg, device)
        self.inferencer.show_progress = False
        # Inferencers ask the checkpoint for the classes, and take COCO's or Cityscapes' else.
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True))
        meta = {key: dataset.metainfo.get(key) for key in ("classes", "palette")}
        self.inferencer.model.dataset_meta |= {key: value for key, value in meta.items() if value}
        self.inferencer.visualizer.dataset_meta = self.inferencer.model.dataset_meta

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return list(self.inferencer.model.dataset_meta["classes"])

    def run(self, image: np.ndarray, name: str, out: Path, track: Track) -> dict[str, Any]:
        """Predict, write the picture, and return the image's record.

        Args:
            image: (H, W, 3), BGR.
            name: Its name, a relative path.
            out: Folder to write to.
            track: Shows the progress of going through tiles.
        """
        size = image.shape[:2]
        is_large = max(size) > _MAX_TILES_WHOLE * self.tile_size
        tiles = make_tiles(size, self.tile_size if is_large else max(size))
        prediction = self.predict(image, tiles, track)
        picture = out / "pictures" / name
        if picture.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            picture = picture.with_name(f"{picture.name}.png")
        make_folder(picture.parent)
        with write_atomically(picture) as file:
            self.draw(image, name, prediction, str(file))
        return self.describe(prediction, name, out)

    @abstractmethod
    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        """MMDetection's or MMSegmentation's."""

    @abstractmethod
    def predict(self, image: np.ndarray, tiles: list[Tile], track: Track) -> Any:
        """Predict on an image, which is one tile if the model can take it whole."""

    @abstractmethod
    def draw(self, image: np.ndarray, name: str, prediction: Any, out_file: str) -> None:
        """Write a picture of what :meth:`predict` has given."""

    @abstractmethod
    def describe(self, prediction: Any, name: str, out: Path) -> dict[str, Any]:
        """Write down what :meth:`predict` has given, in the record or in files that it names."""


class Detection(Task):
    """Boxes, and masks if the model has them."""

    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        return DetInferencer(cfg, cfg.load_from, device)

    def predict(self, image: np.ndarray, tiles: list[Tile], track: Track) -> InstanceData:
        found = detect_by_tiles(self.detect, image, tiles, track)
        found = found[found.scores.argsort(descending=True)]
        if "masks" in found:
            found.masks = [encode_mask(mask.unfold(image.shape[:2])) for mask in found.masks]
        return found

    def detect(self, image: np.ndarray) -> InstanceData:
        """What the model finds in an image, on the CPU."""
        (sample,) = self.inferencer(image, return_datasamples=True)["predictions"]
        instances = sample.pred_instances.cpu()
        return instances[instances.scores >= self.score_thr]

    def draw(self, image: np.ndarray, name: str, prediction: InstanceData, out_file: str) -> None:
        # A few at a time: a hundred masks of a large image are gigabytes.
        step = max(1, _MASK_MEMORY // image[..., 0].size)
        picture = mmcv.bgr2rgb(image)
        for first in range(0, max(1, len(prediction)), step):
            group = prediction[first : first + step]
            if "masks" in group:
                masks = [mask_utils.decode(mask) for mask in group.masks]
                group.masks = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]))
            sample = DetDataSample(pred_instances=group)
            visualizer = self.inferencer.visualizer
            visualizer.add_datasample(
                name, picture, sample, draw_gt=False, pred_score_thr=0, out_file=out_file
            )
            picture = visualizer.get_image()

    def describe(self, prediction: InstanceData, name: str, out: Path) -> dict[str, Any]:
        instances = [
            {
                "class": self.classes[label],
                "score": round(score, 4),
                "bbox": [round(side, 2) for side in box],
            }
            for label, score, box in zip(
                prediction.labels.tolist(),
                prediction.scores.tolist(),
                prediction.bboxes.tolist(),
                strict=True,
            )
        ]
        for instance, mask in zip(instances, prediction.get("masks", ()), strict=False):
            instance["mask"] = mask
        return {"instances": instances}


class Segmentation(Task):
    """A label for each pixel."""

    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        return MMSegInferencer(cfg, cfg.load_from, device=device)

    def predict(self, image: np.ndarray, tiles: list[Tile], track: Track) -> np.ndarray:
        return segment_by_tiles(self.segment, image, tiles, track)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Labels of an image, (H, W)."""
        sample = self.inferencer(image, return_datasamples=True)
        return sample.pred_sem_seg.data[0].cpu().numpy()

    def draw(self, image: np.ndarray, name: str, prediction: np.ndarray, out_file: str) -> None:
        labels = PixelData(data=torch.from_numpy(prediction)[None])
        self.inferencer.visualizer.add_datasample(
            name,
            mmcv.bgr2rgb(image),
            SegDataSample(pred_sem_seg=labels),
            draw_gt=False,
            out_file=out_file,
            # Finding a place for them takes 100 bytes and more a pixel.
            with_labels=prediction.size < _MAX_LABELLED_PIXELS,
        )

    def describe(self, prediction: np.ndarray, name: str, out: Path) -> dict[str, Any]:
        path = Path("labels", f"{name}.png")
        make_folder((out / path).parent)
        with write_atomically(out / path) as file:
            mmcv.imwrite(prediction, str(file))
        counts = np.bincount(prediction.ravel(), minlength=len(self.classes))
        shares = (counts / prediction.size).round(6).tolist()
        return {
            "labels": path.as_posix(),
            "shares": {name: x for name, x in zip(self.classes, shares, strict=True) if x > 0},
        }


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's run lengths, ready for JSON."""
    encoded = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _track_tiles(progress: Progress, tiles: Sequence[Tile]) -> Iterator[Tile]:
    if len(tiles) == 1:
        yield from tiles
        return
    task = progress.add_task("tiles of this image", total=len(tiles))
    yield from progress.track(tiles, task_id=task)
    progress.remove_task(task)
