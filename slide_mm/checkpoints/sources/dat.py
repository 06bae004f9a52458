"""The layout of DAT's and DAT++'s authors, of their classifiers, detectors and segmentors."""

from slide_mm.checkpoints.reshaping import key_rows, linear, value_rows
from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule

_STEM = "stages.0.downsample."
_STAGE = "stages.{stage}."
_MIXER = _STAGE + "attns.{block}."
_MLP = _STAGE + "mlps.{block}."

LAYOUTS = {
    "dat": (
        # One convolution in DAT; in DAT++ a second one after norm and GELU.
        Rule("patch_proj.0.{kind}", _STEM + "0.proj.{kind}"),
        Rule("patch_proj.1.norm.{kind}", _STEM + "0.norm.{kind}"),
        Rule("patch_proj.3.{kind}", _STEM + "2.proj.{kind}"),
        Rule("patch_proj.4.norm.{kind}", _STEM + "2.norm.{kind}"),
        Rule("down_projs.{stage-1}.0.{kind}", DOWNSAMPLE + "proj.{kind}"),
        Rule("down_projs.{stage-1}.1.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
        Rule(_STAGE + "local_perception_units.{block}.{kind}", BLOCK + "local.conv.{kind}"),
        # Norms of mixers and of MLPs by turns.
        Rule(_STAGE + "layer_norms.{even}.norm.{kind}", BLOCK + "norm1.{kind}"),
        Rule(_STAGE + "layer_norms.{odd}.norm.{kind}", BLOCK + "norm2.{kind}"),
        # Windows.
        Rule(_MIXER + "proj_qkv.{kind}", BLOCK + "mixer.qkv.{kind}"),
        Rule(_MIXER + "relative_position_bias_table", BLOCK + "mixer.relative_position_bias_table"),
        Rule(_MIXER + "attn_mask", None),
        # Neighbourhoods.
        Rule(_MIXER + "{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(_MIXER + "rpb", BLOCK + "mixer.relative_position_bias_table"),
        # Sampled points; the output's projection is that of windows, too.
        Rule(_MIXER + "proj_q.{kind}", BLOCK + "mixer.q.{kind}", linear),
        Rule(_MIXER + "proj_k.{kind}", BLOCK + "mixer.kv.{kind}", key_rows),
        Rule(_MIXER + "proj_v.{kind}", BLOCK + "mixer.kv.{kind}", value_rows),
        Rule(_MIXER + "proj_out.{kind}", BLOCK + "mixer.proj.{kind}", linear),
        Rule(_MIXER + "rpe_table", BLOCK + "mixer.relative_position_bias_table"),
        Rule(_MIXER + "conv_offset.0.{kind}", BLOCK + "mixer.offset_conv.{kind}"),
        Rule(_MIXER + "conv_offset.1.norm.{kind}", BLOCK + "mixer.offset_norm.{kind}"),
        Rule(_MIXER + "conv_offset.3.{kind}", BLOCK + "mixer.offset_proj.{kind}", linear),
        # Linear layers in DAT, 1 x 1 convolutions in DAT++.
        Rule(_MLP + "chunk.linear1.{kind}", BLOCK + "mlp.fc1.{kind}"),
        Rule(_MLP + "chunk.linear2.{kind}", BLOCK + "mlp.fc2.{kind}"),
        Rule(_MLP + "linear1.0.{kind}", BLOCK + "mlp.fc1.{kind}", linear),
        Rule(_MLP + "linear2.0.{kind}", BLOCK + "mlp.fc2.{kind}", linear),
        Rule(_MLP + "dwc.{kind}", BLOCK + "mlp.dwconv.{kind}"),
        Rule("norms.{stage}.norm.{kind}", "out_norms.{stage}.{kind}"),  # In detectors.
        Rule("cls_norm.norm.{kind}", "out_norms.3.{kind}"),
        Rule("cls_head.{kind}", "head.fc.{kind}"),
    ),
}
