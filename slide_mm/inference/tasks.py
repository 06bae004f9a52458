"""What detectors and segmentors do with an image: predict, draw, describe."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import get_palette, jitter_color
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as mask_utils

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import type_name
from slide_mm.engine.consistency import iter_heads
from slide_mm.engine.outputs import make_folder
from slide_mm.engine.preflight import silence_log
from slide_mm.engine.reporting import ConfigError
from slide_mm.inference.images import to_picture
from slide_mm.inference.tiling import Track, detect_by_tiles, segment_by_tiles

# An image with a side longer than so many tiles is predicted tile by tile.
_MAX_TILES_WHOLE = 4
_DEFAULT_TILE_SIZE = 512
# Finding places for the labels of a larger image takes gigabytes.
_MAX_LABELLED_PIXELS = 1 << 20


def choose_tile_size(cfg: Config) -> int:
    """Side of a square that the test pipeline doesn't shrink, or else of the training images."""
    for transform in cfg.test_dataloader.dataset.pipeline:
        if type_name(transform).endswith("Resize") and transform.get("scale"):
            return int(np.min(transform.scale))
    size = (cfg.model.get("data_preprocessor") or {}).get("size")
    return min(size) if size else _DEFAULT_TILE_SIZE


class Task:
    """What a kind of model does with an image.

    A task has ``build_inferencer``, which imports MMDetection's or MMSegmentation's, as that takes
    seconds and prints; ``predict``, by tiles if the image is larger than one; ``draw``, which makes
    a picture of a prediction, (H, W, 3), BGR; and ``describe``, which writes a prediction down in
    the image's record, or in files that it names.

    Args:
        cfg: The config, whose ``load_from`` names a checkpoint that fits.
        device: Where to compute.
        score_thr: Least score of a detection.

    Raises:
        ConfigError: If the model knows more classes than the config has names.
    """

    def __init__(self, cfg: Config, device: str, score_thr: float) -> None:
        self.tile_size = choose_tile_size(cfg)
        self.score_thr = score_thr
        with silence_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They are about what is set below.
            self.inferencer = self.build_inferencer(cfg, device)
            dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True))
        self.inferencer.show_progress = False
        # Inferencers ask the checkpoint for the classes, and take COCO's or Cityscapes' else.
        named = {key: dataset.metainfo.get(key) for key in ("classes", "palette")}
        meta = self.inferencer.model.dataset_meta
        meta |= {key: value for key, value in named.items() if value}
        if len(meta["palette"]) < len(meta["classes"]):
            meta["palette"] = "random"  # COCO's, for more classes of one's own.
        self.inferencer.visualizer.dataset_meta = meta
        heads = iter_heads(self.inferencer.model)
        num_classes = max((head.num_classes for _, head in heads), default=0)
        if num_classes > len(self.classes):
            raise ConfigError(
                f"the model of {cfg.filename} knows {num_classes} classes, and its test dataset "
                f"names {len(self.classes)}: set test_dataloader.dataset.metainfo"
            )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return list(self.inferencer.model.dataset_meta["classes"])

    def run(self, image: np.ndarray, name: str, out: Path, track: Track) -> dict[str, Any]:
        """Predict, write the picture, and return the image's record.

        Args:
            image: (H, W) or (H, W, C).
            name: Its name, a relative path.
            out: Folder to write to. Where something fails, nothing of the image is left in it.
            track: Shows the progress of going through tiles.
        """
        longer = max(image.shape[:2])
        is_large = longer > _MAX_TILES_WHOLE * self.tile_size
        prediction = self.predict(image, self.tile_size if is_large else longer, track)
        picture = out / "pictures" / name
        if picture.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            picture = picture.with_name(f"{picture.name}.png")
        record = {"picture": picture.relative_to(out).as_posix()}
        try:
            _write_image(picture, self.draw(to_picture(image), prediction))
            return record | self.describe(prediction, name, out)
        except BaseException:
            remove_files(out, {**record, "labels": f"labels/{name}.png"})
            raise


class Detection(Task):
    """Boxes, and masks if the model has them."""

    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, cfg.load_from, device)

    def predict(self, image: np.ndarray, tile_size: int, track: Track) -> InstanceData:
        return detect_by_tiles(self.detect, image, tile_size, track)

    def detect(self, image: np.ndarray) -> InstanceData:
        """What the model finds in an image, on the CPU."""
        (sample,) = self.inferencer(image, return_datasamples=True)["predictions"]
        instances = sample.pred_instances
        return instances[instances.scores >= self.score_thr].cpu()

    def draw(self, image: np.ndarray, prediction: InstanceData) -> np.ndarray:
        prediction = prediction[prediction.scores.argsort()]  # The best comes out on top.
        picture = mmcv.bgr2rgb(image)
        visualizer = self.inferencer.visualizer
        if "masks" in prediction:
            # The visualizer wants all masks at once: for a large image those are gigabytes.
            palette = get_palette(visualizer.dataset_meta["palette"], len(self.classes))
            for mask, label in zip(prediction.masks, prediction.labels.tolist(), strict=True):
                draw_mask(picture, mask, jitter_color(palette[label]), visualizer.alpha)
        boxes = {key: prediction[key] for key in ("bboxes", "scores", "labels")}
        sample = DetDataSample(pred_instances=InstanceData(**boxes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of boxes that end at the border.
            visualizer.add_datasample("", picture, sample, draw_gt=False, pred_score_thr=-1)
        return mmcv.rgb2bgr(visualizer.get_image())

    def describe(self, prediction: InstanceData, name: str, out: Path) -> dict[str, Any]:
        instances = [
            {
                "label": label,
                "class": self.classes[label],
                "score": round(score, 4),
                "bbox": [round(side, 2) for side in bbox],
            }
            for label, score, bbox in zip(
                prediction.labels.tolist(),
                prediction.scores.tolist(),
                prediction.bboxes.tolist(),
                strict=True,
            )
        ]
        for instance, mask in zip(instances, prediction.get("masks", ()), strict=False):
            instance["mask"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        return {"instances": instances}


class Segmentation(Task):
    """A label for each pixel."""

    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        from mmseg.apis import MMSegInferencer

        return MMSegInferencer(cfg, cfg.load_from, device=device)

    def predict(self, image: np.ndarray, tile_size: int, track: Track) -> np.ndarray:
        return segment_by_tiles(self.segment, image, tile_size, len(self.classes), track)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Labels of an image, (H, W)."""
        sample = self.inferencer(image, return_datasamples=True)
        return sample.pred_sem_seg.data[0].cpu().numpy()

    def draw(self, image: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        visualizer = self.inferencer.visualizer
        labels = PixelData(data=torch.from_numpy(prediction)[None])
        visualizer.add_datasample(
            "",
            mmcv.bgr2rgb(image),
            SegDataSample(pred_sem_seg=labels),
            draw_gt=False,
            with_labels=prediction.size <= _MAX_LABELLED_PIXELS,
        )
        return mmcv.rgb2bgr(visualizer.get_image())

    def describe(self, prediction: np.ndarray, name: str, out: Path) -> dict[str, Any]:
        labels = f"labels/{name}.png"
        _write_image(out / labels, prediction)
        counts = np.bincount(prediction.ravel(), minlength=len(self.classes))
        shares = (counts / prediction.size).round(6).tolist()
        return {
            "labels": labels,
            "shares": {name: x for name, x in zip(self.classes, shares, strict=True) if x > 0},
        }


def remove_files(out: Path, record: dict[str, Any]) -> None:
    """Remove the files that an image's record names."""
    for key in ("picture", "labels"):
        if key in record:
            (out / record[key]).unlink(missing_ok=True)


def draw_mask(
    picture: np.ndarray, mask: dict[str, Any], color: Sequence[int], alpha: float
) -> None:
    """Lay a colour with a white outline over the pixels of a mask.

    Args:
        picture: (H, W, 3), uint8, is changed.
        mask: COCO's run lengths, of the size of the picture.
        color: Three numbers from 0 to 255.
        alpha: Its opacity, from 0 to 1.
    """
    left, top, width, height = map(int, mask_utils.toBbox(mask))
    part = slice(top, top + height), slice(left, left + width)
    inside = mask_utils.decode(mask)[part].astype(bool)
    blended = (1 - alpha) * picture[part][inside] + alpha * np.array(color)
    picture[part][inside] = blended.astype(np.uint8)
    outline, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in outline:
        picture[part][contour[:, 0, 1], contour[:, 0, 0]] = 255


def _write_image(path: Path, image: np.ndarray) -> None:
    make_folder(path.parent)
    with write_atomically(path) as file:
        mmcv.imwrite(image, str(file))
