"""The stages of backbones: this project's, and others that give a feature map a stage."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from slide_mm.models.backbone import HierarchicalBackbone


class StageParts(NamedTuple):
    """The modules of a stage that run first and last, and its attention layers."""

    first: nn.Module
    last: nn.Module
    mixers: Sequence[nn.Module]


def stride_of(stage: int) -> int:
    """Pixels from one token of a stage, counted from 0, to the next."""
    return 4 * 2**stage


def stages_of(model: nn.Module) -> list[StageParts]:
    """Find the stages of a backbone, each from its downsampling to its last block or norm.

    Returns:
        None at all for a backbone that is neither one of this project's nor PVT or Swin as
        MMDetection has them.
    """
    if isinstance(model, HierarchicalBackbone):
        return [StageParts(x, x, [block.mixer for block in x.blocks]) for x in model.stages]
    for parent in type(model).__mro__:
        if parent.__name__ in _FOREIGN:
            return _FOREIGN[parent.__name__](model)
    return []


def _stages_of_pvt(model: nn.Module) -> list[StageParts]:
    return [
        StageParts(embedding, norm, [x.attn for x in blocks if hasattr(x, "attn")])
        for embedding, blocks, norm in model.layers
    ]


def _stages_of_swin(model: nn.Module) -> list[StageParts]:
    # There a stage ends with the downsampling to the next.
    downsamplings = [model.patch_embed, *(stage.downsample for stage in model.stages)]
    return [
        StageParts(first, stage.blocks[-1], [block.attn for block in stage.blocks])
        for first, stage in zip(downsamplings, model.stages, strict=False)
    ]


_FOREIGN: dict[str, Callable[[nn.Module], list[StageParts]]] = {
    "PyramidVisionTransformer": _stages_of_pvt,
    "SwinTransformer": _stages_of_swin,
}


def mixer_names(model: nn.Module, number: int) -> list[str]:
    """The kind of token mixer in each of a number of stages, or of backbone if that is unknown."""
    kinds = [type(stage.mixers[0]).__name__ for stage in stages_of(model)]
    return kinds or number * [type(model).__name__]


def stage_features(model: nn.Module, image: Tensor) -> list[Tensor]:
    """What each stage passes on, (B, H, W, C).

    These are the outputs of other projects' backbones, and the tokens before the norms of outputs
    in this project's.
    """
    if not isinstance(model, HierarchicalBackbone):
        return [features.permute(0, 2, 3, 1) for features in model(image)]
    return model.forward_stages(image, range(len(model.stages)))
