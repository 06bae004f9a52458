"""The layouts of NAT's and DiNAT's authors, and of Hugging Face. Dilations have no weights."""

import torch
from torch import Tensor

from slide_mm.checkpoints.reshaping import Beside, Reshape
from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule

_BLOCK = "levels.{stage}.blocks.{block}."
_MODEL = "{model:nat|dinat}."
_LAYER = _MODEL + "encoder.levels.{stage}.layers.{block}."
_TABLE = BLOCK + "mixer.relative_position_bias_table"
_QKV = BLOCK + "mixer.qkv.{kind}"
_STEM = "stages.0.downsample."


def _among_thirds(index: int) -> Reshape:
    """Rows of query, key or value with zeros for the others: the three add up."""

    def reshape(tensor: Tensor, _: Beside) -> Tensor:
        thirds = [torch.zeros_like(tensor)] * 3
        thirds[index] = tensor
        return torch.cat(thirds)

    return reshape


def _row(index: int) -> Reshape:
    """One of two rows."""
    return lambda tensor, _: tensor[index]


LAYOUTS = {
    "nat": (
        Rule("patch_embed.proj.{layer:0|1}.{kind}", _STEM + "{layer}.proj.{kind}"),
        Rule("patch_embed.norm.{kind}", _STEM + "1.norm.{kind}"),
        # A downsampling ends a stage.
        Rule("levels.{stage-1}.downsample.reduction.weight", DOWNSAMPLE + "proj.weight"),
        Rule("levels.{stage-1}.downsample.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
        Rule(_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
        Rule(_BLOCK + "attn.{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(_BLOCK + "attn.rpb", _TABLE),
        Rule(_BLOCK + "gamma{layer:1|2}", BLOCK + "scale{layer}.gamma"),
        Rule("norm{stage}.{kind}", "out_norms.{stage}.{kind}"),  # In detectors and segmentors.
        Rule("norm.{kind}", "out_norms.3.{kind}"),
        Rule("head.{kind}", "head.fc.{kind}"),
    ),
    "nat-huggingface": (
        Rule(
            _MODEL + "embeddings.patch_embeddings.projection.{layer:0|1}.{kind}",
            _STEM + "{layer}.proj.{kind}",
        ),
        Rule(_MODEL + "embeddings.norm.{kind}", _STEM + "1.norm.{kind}"),
        Rule(
            _MODEL + "encoder.levels.{stage-1}.downsample.reduction.weight",
            DOWNSAMPLE + "proj.weight",
        ),
        Rule(
            _MODEL + "encoder.levels.{stage-1}.downsample.norm.{kind}", DOWNSAMPLE + "norm.{kind}"
        ),
        Rule(_LAYER + "layernorm_before.{kind}", BLOCK + "norm1.{kind}"),
        Rule(_LAYER + "attention.self.query.{kind}", _QKV, _among_thirds(0)),
        Rule(_LAYER + "attention.self.key.{kind}", _QKV, _among_thirds(1)),
        Rule(_LAYER + "attention.self.value.{kind}", _QKV, _among_thirds(2)),
        Rule(_LAYER + "attention.self.rpb", _TABLE),
        Rule(_LAYER + "attention.output.dense.{kind}", BLOCK + "mixer.proj.{kind}"),
        Rule(_LAYER + "layernorm_after.{kind}", BLOCK + "norm2.{kind}"),
        Rule(_LAYER + "intermediate.dense.{kind}", BLOCK + "mlp.fc1.{kind}"),
        Rule(_LAYER + "output.dense.{kind}", BLOCK + "mlp.fc2.{kind}"),
        Rule(_LAYER + "layer_scale_parameters", BLOCK + "scale1.gamma", _row(0)),
        Rule(_LAYER + "layer_scale_parameters", BLOCK + "scale2.gamma", _row(1)),
        Rule(_MODEL + "layernorm.{kind}", "out_norms.3.{kind}"),
        Rule("classifier.{kind}", "head.fc.{kind}"),
    ),
}
