"""Predictions on images, drawn and written down."""

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from slide_mm.checkpoints import CheckpointError
from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import get_task, load_config, require_keys, require_weights
from slide_mm.engine.data_paths import iter_datasets
from slide_mm.engine.explaining import explain
from slide_mm.engine.footprint import Footprint
from slide_mm.engine.outputs import check_device, make_folder
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.weights import check_checkpoint
from slide_mm.inference.images import ImageLoader, UnreadableError, find_images
from slide_mm.inference.tasks import Detection, Segmentation, Task, remove_files

# So many failures of one kind, and no success, are not the images'.
_MAX_FAILURES = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def infer(
    config: str,
    checkpoint: str | None,
    inputs: str,
    out: str | None = None,
    score_thr: float = 0.3,
    device: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Predict on images, draw the predictions and write them down.

    Args:
        config: Config file of a detector or segmentor, or a folder that
            ``tools/model_converters/pack.py`` has written.
        checkpoint: Weights of its model; None for those in the folder.
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
    checkpoint = cfg.load_from = require_weights(config, checkpoint)
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
    with _results_of_pictures(out, results):
        _predict_all(task, load, paths, out, results)
        if not results["images"]:
            reason = results["unreadable"][-1]["reason"]
            raise ConfigError(
                f"{inputs}: none of its {len(paths)} images can be predicted, the last one for: "
                f"{reason}"
            )
    return out, results


def _predict_all(
    task: Task, load: ImageLoader, paths: dict[str, Path], out: Path, results: dict[str, Any]
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
                is_alike = len(failures) == _MAX_FAILURES and len(set(failures)) == 1
                if is_alike and not results["images"]:
                    raise ConfigError(f"no image can be predicted: {reason}") from error
                continue
            height, width = image.shape[:2]
            results["images"].append({"file": name, "height": height, "width": width, **record})


def _track_tiles(progress: Progress, tiles: Sequence[Any]) -> Iterator[Any]:
    if len(tiles) == 1:
        yield from tiles
        return
    task = progress.add_task("tiles of this image", total=len(tiles))
    yield from progress.track(tiles, task_id=task)
    progress.remove_task(task)


@contextmanager
def _results_of_pictures(out: Path, results: dict[str, Any]) -> Iterator[None]:
    """Write ``results.json`` at the end, whatever has ended the block, for the pictures there are.

    Args:
        out: The folder. Without a picture nothing is left in it.
        results: What to write; its ``images`` are added in the block.
    """
    footprint = Footprint(out)
    try:
        make_folder(out)
        yield
    finally:
        if not results["images"]:
            footprint.erase()
        else:
            _write_results(out, results)


def _write_results(out: Path, results: dict[str, Any]) -> None:
    while True:
        try:
            with write_atomically(out / "results.json") as file:
                file.write_text(json.dumps(results) + "\n", encoding="utf-8")
            return
        except OSError as error:
            if error.errno not in _FULL or len(results["images"]) < 2:
                raise
            # The disk is full: the last picture makes room.
            remove_files(out, results["images"].pop())
