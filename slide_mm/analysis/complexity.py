"""Counting operations and parameters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slide_mm.engine.config import get_task, load_config, require_keys
from slide_mm.engine.explaining import explain
from slide_mm.engine.preflight import check_model, image_channels
from slide_mm.engine.reporting import ConfigError

aten = torch.ops.aten

# What MMDetection 2 took for proposals when it counted, and the papers with it.
NUM_BOX_ROIS, NUM_MASK_ROIS = 1000, 100
# Those that detectors and segmentors are usually counted for, in the paper too.
_IMAGE_SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}
_READS_SIZES = "MultiScaleDeformableAttention"


class Complexity(NamedTuple):
    """A model's multiply-adds for one image, and its parameters, frozen ones included."""

    flops: int
    params: int


def _per_element(inputs: int = 0, outputs: int = 0) -> Callable[..., int]:
    """Formula for an operation of so many multiply-adds an element of its input and output."""

    def formula(shape, *args: Any, out_shape=None, **kwargs: Any) -> int:
        # Operations with several outputs come with the shapes of all.
        return 2 * (inputs * prod(shape) + (outputs * prod(out_shape) if outputs else 0))

    return formula


# Multiply-adds an element as MMEngine's analysis counts them.
_FORMULAS = {
    aten.native_layer_norm: _per_element(inputs=5),
    aten.native_group_norm: _per_element(inputs=5),
    aten.native_batch_norm: _per_element(inputs=2),
    aten._native_batch_norm_legit_no_training: _per_element(inputs=2),
    aten.upsample_bilinear2d: _per_element(outputs=4),
    aten.grid_sampler_2d: _per_element(outputs=4),
}


@torch.no_grad()
def count_flops(function: Callable[[], Any]) -> int:
    """Count the multiply-adds of a call, by the conventions of MMEngine's analysis.

    Matrix products, convolutions and attention products count in full, norms 5 (batch norms 2) and
    bilinear resizing and sampling 4 an element; activations, softmax and sums don't, nor pooling
    and resizing to the nearest, which MMEngine counts with 1. Other than MMEngine's tracing, this
    works on tensors without memory, and sees what ``scaled_dot_product_attention`` does. Slide
    Attention counts what its published form computes: for each pixel 2 K^4 C to shift keys and
    values by a depth-wise convolution with K^2 outputs a channel, and 2 K^2 C to attend.

    Args:
        function: Runs a model on tensors of the device ``meta``.
    """
    with counting_flops() as total:
        function()
        return total()


@contextmanager
def counting_flops() -> Iterator[Callable[[], int]]:
    """Count as :func:`count_flops` does; yields a function that tells the number so far."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        # PyTorch counts a multiply-add twice.
        yield lambda: counter.get_total_flops() // 2


def build_to_count(cfg: Config) -> nn.Module:
    """Build a config's model without memory, or time to initialise it.

    Deformable attention reads the sizes of maps from tensors: models with it are built in memory.

    Raises:
        ConfigError: If it cannot be built.
    """
    with torch.device("meta"):
        model = check_model(cfg, pretrained=False)
    if any(type(module).__name__ == _READS_SIZES for module in model.modules()):
        return check_model(cfg, pretrained=False)
    return model


def get_flops(
    config: str, image_size: tuple[int, int] | None = None
) -> tuple[tuple[int, int], Complexity]:
    """Count operations and parameters of a config's model, without weights or data.

    Args:
        config: Config file of a detector or segmentor.
        image_size: Height and width, in pixels. Default: 800 x 1280 for detection, 512 x 2048
            for segmentation.

    Returns:
        The image size, and what :func:`count_complexity` says.

    Raises:
        ConfigError: If the config or the size is wrong, or its model cannot be counted.
    """
    cfg = load_config(config)
    require_keys(cfg, "counting", "model")
    image_size = image_size or _IMAGE_SIZES[get_task(cfg)]
    if min(image_size) < 1:
        raise ConfigError(f"--shape is {image_size[0]} {image_size[1]}: give two positive numbers")
    model = build_to_count(cfg)
    try:
        return image_size, count_complexity(model, image_size, image_channels(model))
    except Exception as error:  # Foreign models may need data, or operators for real tensors alone.
        raise ConfigError(
            f"the model of {cfg.filename} cannot be counted at {image_size[0]} x {image_size[1]}: "
            f"{explain(error, cfg)}"
        ) from error


def count_complexity(
    model: nn.Module, image_size: tuple[int, int], channels: int = 3
) -> Complexity:
    """Count a detector or a segmentor of MMDetection or MMSegmentation, on the device it is on.

    What runs at inference is counted: of detectors the heads too, without the selection of boxes,
    and with 1000 regions for the box heads and 100 for the mask heads, as MMDetection 2 did it and
    so the published figures; of segmentors the decode head, and not the auxiliary head, whose
    parameters count nonetheless.

    Args:
        model: The model, see :func:`build_to_count`.
        image_size: Height and width of the image, in pixels.
        channels: Channels of the image.
    """
    model.eval().requires_grad_(False)  # The counter trips over views of what learns.
    image = torch.zeros(1, channels, *image_size, device=next(model.parameters()).device)
    flops = count_flops(lambda: _run(model, image))
    return Complexity(flops, sum(parameter.numel() for parameter in model.parameters()))


def _run(model: nn.Module, image: torch.Tensor) -> None:
    size = image.shape[-2:]
    samples = [BaseDataElement(metainfo={"img_shape": size, "batch_input_shape": size})]
    if hasattr(getattr(model, "decode_head", None), "pixel_decoder"):
        model.decode_head(model.extract_feat(image), samples)  # MMSegmentation forgets the samples.
        return
    if getattr(model, "roi_head", None) is None:
        model(image, samples, mode="tensor")
        return
    features = model.extract_feat(image)
    model.rpn_head(features)
    heads = model.roi_head
    for head, extractor in _pairs(heads.bbox_head, heads.bbox_roi_extractor):
        head(_regions(image, extractor, NUM_BOX_ROIS))
    if heads.with_mask:
        for head, extractor in _pairs(heads.mask_head, heads.mask_roi_extractor):
            head(_regions(image, extractor, NUM_MASK_ROIS))


def _pairs(heads: nn.Module, extractors: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the head of each stage of a cascade, or the only one, with its region extractor."""
    if isinstance(heads, nn.ModuleList):
        return zip(heads, extractors, strict=True)
    return iter([(heads, extractors)])


def _regions(image: torch.Tensor, extractor: nn.Module, number: int) -> torch.Tensor:
    size = extractor.roi_layers[0].output_size
    return image.new_empty(number, extractor.out_channels, *size)
