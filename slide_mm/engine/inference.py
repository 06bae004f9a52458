"""Predictions on images, drawn and written down."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import get_palette, jitter_color
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as mask_utils
from rich.console import Console
from rich.progress import Progress
from torch import nn

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.config import get_task, load_config, require_keys, type_name
from slide_mm.engine.data_paths import iter_datasets
from slide_mm.engine.explaining import explain
from slide_mm.engine.image_loading import ImageLoader, UnreadableError, find_images, to_picture
from slide_mm.engine.inference_results import remove_files, results_of_pictures
from slide_mm.engine.outputs import check_device, make_folder, write_atomically
from slide_mm.engine.preflight import check_model, silence_log
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.tiling import Track, detect_by_tiles, segment_by_tiles
from slide_mm.engine.weights import check_checkpoint

# An image with a side longer than so many tiles is predicted tile by tile.
_MAX_TILES_WHOLE = 4
_DEFAULT_TILE_SIZE = 512
# So many failures of one kind, and no success, are not the images'.
_MAX_FAILURES = 5
# Finding places for the labels of a larger image takes gigabytes.
_MAX_LABELLED_PIXELS = 1 << 20


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
        score_thr: Least score of a detection that is drawn and written down, from 0 to 1.
        device: Where to compute. Default: what MMEngine finds.

    Returns:
        The folder, and what its ``results.json`` holds: ``images``, a record each, and
        ``unreadable``, what was passed over and why. It is written, too, for the pictures there
        are, where something ends the run.

    Raises:
        ConfigError: If the config or an option is wrong, or none of the images can be predicted.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    if not 0 <= score_thr <= 1:
        raise ConfigError(f"--score-thr is {score_thr}: give a number from 0 to 1")
    cfg = load_config(config)
    require_keys(cfg, "inference", "model", "test_dataloader", "visualizer")
    # Inferencers look for a pipeline in the dataset, not in what it wraps.
    datasets = [dataset for _, dataset in iter_datasets(cfg, "test") if "pipeline" in dataset]
    if not datasets:
        raise ConfigError(f"config {config} has no test pipeline: inference needs it")
    cfg.test_dataloader.dataset = datasets[0]
    cfg.visualizer.vis_backends = None  # Pictures go to files of their own.
    cfg.load_from = checkpoint
    Image.MAX_IMAGE_PIXELS = None  # Large images are what tiles are for.
    paths = find_images(inputs)
    device = str(check_device(device or get_device()))
    kind = {"mmdet": Detection, "mmseg": Segmentation}[get_task(cfg)]
    check_checkpoint(cfg, check_model(cfg, pretrained=False), whole=True)
    load = ImageLoader(cfg)
    try:
        task = kind(cfg, device, score_thr)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # Parts of a config can be wrong in many ways.
        raise ConfigError(explain(error, cfg)) from error
    out = Path(out or Path(cfg.work_dir, "inference"))
    results = {"config": config, "checkpoint": checkpoint, "classes": task.classes}
    results |= {"images": [], "unreadable": []}
    with results_of_pictures(out, results):
        _predict_all(task, load, paths, out, results)
        if not results["images"]:
            reason = results["unreadable"][-1]["reason"]
            raise ConfigError(
                f"{inputs}: none of its {len(paths)} images can be predicted, the last one for: "
                f"{reason}"
            )
    return out, results


def _predict_all(
    task: "Task", load: ImageLoader, paths: dict[str, Path], out: Path, results: dict[str, Any]
) -> None:
    """Add a record of each image to the results, as soon as its files are written."""
    failures = []
    with Progress(console=Console(stderr=True, soft_wrap=True)) as progress:
        for name, path in progress.track(paths.items(), len(paths), description="images"):
            try:
                image = load(path)
                record = task.run(image, name, out, partial(_track_tiles, progress))
            except (ConfigError, OSError):
                raise
            except Exception as error:  # A model has limits that only images show.
                reason = str(error) if isinstance(error, UnreadableError) else explain(error)
                progress.console.print(f"passed over {path}: {reason}", markup=False)
                results["unreadable"].append({"file": name, "reason": reason})
                failures += [] if isinstance(error, UnreadableError) else [reason]
                if not results["images"] and _are_alike(failures):
                    raise ConfigError(f"no image can be predicted: {reason}") from error
                continue
            height, width = image.shape[:2]
            results["images"].append({"file": name, "height": height, "width": width, **record})


def _are_alike(reasons: Sequence[str]) -> bool:
    return len(reasons) == _MAX_FAILURES and len(set(reasons)) == 1


def choose_tile_size(cfg: Config) -> int:
    """Side of a square that the test pipeline doesn't shrink, or else of the training images."""
    for transform in cfg.test_dataloader.dataset.pipeline:
        if type_name(transform).endswith("Resize") and transform.get("scale"):
            return int(np.min(transform.scale))
    size = (cfg.model.get("data_preprocessor") or {}).get("size")
    return min(size) if size else _DEFAULT_TILE_SIZE


class Task(ABC):
    """What a kind of model does with an image.

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
        num_classes = _count_classes(self.inferencer.model)
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
            remove_files(out, {**record, "labels": _labels_of(name)})
            raise

    @abstractmethod
    def build_inferencer(self, cfg: Config, device: str) -> BaseInferencer:
        """MMDetection's or MMSegmentation's.

        Importing those takes seconds and prints: it has to wait until all is checked.
        """

    @abstractmethod
    def predict(self, image: np.ndarray, tile_size: int, track: Track) -> Any:
        """Predict on an image, by tiles if it is larger than one."""

    @abstractmethod
    def draw(self, image: np.ndarray, prediction: Any) -> np.ndarray:
        """A picture of what :meth:`predict` has given, (H, W, 3), BGR."""

    @abstractmethod
    def describe(self, prediction: Any, name: str, out: Path) -> dict[str, Any]:
        """Write down what :meth:`predict` has given, in the record or in files that it names."""


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
        labels = _labels_of(name)
        _write_image(out / labels, prediction)
        counts = np.bincount(prediction.ravel(), minlength=len(self.classes))
        shares = (counts / prediction.size).round(6).tolist()
        return {
            "labels": labels,
            "shares": {name: x for name, x in zip(self.classes, shares, strict=True) if x > 0},
        }


def _labels_of(name: str) -> str:
    return f"labels/{name}.png"


def _count_classes(model: nn.Module) -> int:
    """Number of classes that a detector's or segmentor's heads tell apart."""
    heads = [x for name, x in model.named_modules() if "head" in name and "rpn" not in name]
    return max((getattr(head, "num_classes", 0) for head in heads), default=0)


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


def _track_tiles(progress: Progress, tiles: Sequence[Any]) -> Iterator[Any]:
    if len(tiles) == 1:
        yield from tiles
        return
    task = progress.add_task("tiles of this image", total=len(tiles))
    yield from progress.track(tiles, task_id=task)
    progress.remove_task(task)
