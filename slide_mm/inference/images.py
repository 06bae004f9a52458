"""Images for inference: finding them, and loading them as a config's test pipeline does."""

import glob
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from mmdet.utils.misc import IMG_EXTENSIONS
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope

from slide_mm.data_checks.samples import require_whole
from slide_mm.engine.config import type_name
from slide_mm.engine.explaining import explain
from slide_mm.engine.reporting import ConfigError


class UnreadableError(ValueError):
    """An image that cannot be loaded; the message says why."""


def find_images(inputs: str) -> dict[str, Path]:
    """List an image, the images of a folder or those that a pattern matches.

    Returns:
        Paths by names that are different: what the paths don't share.

    Raises:
        ConfigError: If there are none.
    """
    if os.path.isdir(inputs):
        paths = [path for path in Path(inputs).iterdir() if path.suffix.lower() in IMG_EXTENSIONS]
    elif os.path.exists(inputs):
        paths = [Path(inputs)]
    else:
        paths = [Path(path) for path in glob.glob(inputs, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise ConfigError(f"no image at {inputs}: give an image, a folder of them or a pattern")
    common = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(common).as_posix(): path for path in sorted(paths)}


class ImageLoader:
    """Loads images as the test pipeline's own step says: ``color_type``, ``imdecode_backend``, ...

    The config's pipeline is changed to what MMDetection's and MMSegmentation's inferencers know:
    they look for a ``LoadImageFromFile`` by its name, and hand it what is loaded here.

    Args:
        cfg: The config; its test dataset has a pipeline.

    Raises:
        ConfigError: If the pipeline loads no image, or the step can't be built.
    """

    def __init__(self, cfg: Config) -> None:
        pipeline = cfg.test_dataloader.dataset.pipeline
        loading = [step for step in pipeline if type_name(step).startswith("Load")]
        images = [step for step in loading if "Image" in type_name(step)]
        if not images:
            raise ConfigError(
                f"the test pipeline of {cfg.filename} has no LoadImageFromFile: inference needs it"
            )
        options = dict(images[0])
        for key in ("backend_args", "file_client_args"):
            options.pop(key, None)  # Files are on this machine.
        try:
            with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
                self.step = TRANSFORMS.build(options)
        except Exception as error:  # Constructors fail in many ways over a config.
            raise ConfigError(explain(error, cfg)) from error
        others = [step for step in pipeline if step not in loading]
        for step in others:
            if isinstance(step.type, type):
                step.type = f"{step.type.__module__}.{step.type.__qualname__}"
        as_float = {"to_float32": True} if options.get("to_float32") else {}
        cfg.test_dataloader.dataset.pipeline = [dict(type="LoadImageFromFile", **as_float), *others]

    def __call__(self, path: Path) -> np.ndarray:
        """Load an image, (H, W) or (H, W, C), in the order of channels that the training sees.

        Raises:
            UnreadableError: If that is impossible.
        """
        if not path.is_file():  # Reading a pipe would wait for what comes out.
            raise UnreadableError("it is no file")
        try:
            require_whole(path.read_bytes())  # OpenCV takes what a cut-off file lacks for grey.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.step(dict(img_path=str(path)))["img"]
        except Exception as error:  # Decoders raise many kinds.
            raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def to_picture(image: np.ndarray) -> np.ndarray:
    """What to draw on: an image of any channels and type as (H, W, 3), uint8, BGR."""
    image = image.reshape(*image.shape[:2], -1)
    # Of two channels the first is shown, of four and more the first three.
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype != np.uint8 and (image.min() < 0 or image.max() > 255):
        image = cv2.normalize(image.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX)
    return np.ascontiguousarray(image.astype(np.uint8))
