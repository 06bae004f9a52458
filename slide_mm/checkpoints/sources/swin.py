"""Swin's layouts, and that of Slide-Swin's authors."""

from slide_mm.checkpoints.reshaping import (
    from_unfold,
    heads_in_layers,
    kernel,
    kernel_bias,
    kernel_without_shift,
    position_bias,
)
from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule

_BLOCK = "layers.{stage}.blocks.{block}."
_MMDET_ATTENTION = BLOCK + "attn.w_msa."
_MERGING = "downsample.{layer:norm|reduction}.{kind}"
_TABLE = "relative_position_bias_table"

# What Microsoft, timm and Slide-Swin's authors name alike.
_COMMON = (
    Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
    Rule(_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(_BLOCK + "attn.proj.{kind}", BLOCK + "mixer.proj.{kind}"),
    Rule("norm.{kind}", "out_norms.3.{kind}"),
)
# Patch merging ends a stage, and windows have masks.
_MICROSOFT = (
    *_COMMON,
    Rule("layers.{stage-1}." + _MERGING, DOWNSAMPLE + "{layer}.{kind}"),
    Rule(_BLOCK + "attn_mask", None),
    Rule("head.{kind}", "head.fc.{kind}"),
)
_WINDOWS = (
    Rule(_BLOCK + "attn.qkv.{kind}", BLOCK + "mixer.qkv.{kind}"),
    Rule(_BLOCK + "attn." + _TABLE, BLOCK + "mixer." + _TABLE),
)

LAYOUTS = {
    # Microsoft's, and timm's before version 0.8.
    "swin": (
        *_MICROSOFT,
        *_WINDOWS,
        Rule("norm{stage}.{kind}", "out_norms.{stage}.{kind}"),  # In Microsoft's detectors.
    ),
    "swin-timm": (
        *_COMMON,
        *_WINDOWS,
        Rule("layers.{stage}." + _MERGING, DOWNSAMPLE + "{layer}.{kind}"),
        Rule("head.fc.{kind}", "head.fc.{kind}"),
    ),
    # MMDetection's and MMSegmentation's; patch merging in the order of torch's unfold.
    "swin-mmdet": (
        Rule("patch_embed.projection.{kind}", "stages.0.downsample.proj.{kind}"),
        Rule("patch_embed.norm.{kind}", "stages.0.downsample.norm.{kind}"),
        Rule("stages.{stage-1}." + _MERGING, DOWNSAMPLE + "{layer}.{kind}", from_unfold),
        Rule(BLOCK + "{layer:norm1|norm2}.{kind}", BLOCK + "{layer}.{kind}"),
        Rule(_MMDET_ATTENTION + "{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(_MMDET_ATTENTION + _TABLE, BLOCK + "mixer." + _TABLE),
        Rule(BLOCK + "ffn.layers.0.0.{kind}", BLOCK + "mlp.fc1.{kind}"),
        Rule(BLOCK + "ffn.layers.1.{kind}", BLOCK + "mlp.fc2.{kind}"),
        Rule("norm{stage}.{kind}", "out_norms.{stage}.{kind}"),
    ),
    # As its authors train it: two convolutions instead of one learned kernel.
    "slide-swin": (
        *_MICROSOFT,
        Rule(_BLOCK + "attn.qkv.{kind}", BLOCK + "mixer.qkv.{kind}", heads_in_layers),
        Rule(_BLOCK + "attn." + _TABLE, BLOCK + "mixer." + _TABLE, position_bias),
        Rule(
            _BLOCK + "attn.dep_conv.weight", BLOCK + "mixer.deformed_kernel", kernel_without_shift
        ),
        Rule(_BLOCK + "attn.dep_conv1.weight", BLOCK + "mixer.deformed_kernel", kernel),
        Rule(
            _BLOCK + "attn.{layer:dep_conv|dep_conv1}.bias",
            BLOCK + "mixer.shift_bias",
            kernel_bias,
        ),
    ),
}
