"""Where weights come from: one table of names and shapes a source."""

from slide_mm.checkpoints.reshaping import (
    from_unfold,
    heads_in_layers,
    kernel,
    kernel_bias,
    kernel_without_shift,
    key_value_rows,
    linear,
    position_bias,
    position_map,
    query_rows,
)
from slide_mm.checkpoints.rules import Rule, Source

BLOCK = "stages.{stage}.blocks.{block}."
DOWNSAMPLE = "stages.{stage}.downsample."
SWIN_BLOCK = "layers.{stage}.blocks.{block}."
PVT_BLOCK = "block{stage+1}.{block}."
MMDET_PVT_BLOCK = "layers.{stage}.1.{block+1}."
MMDET_PVT_V2_BLOCK = "layers.{stage}.1.{block}."
BIAS_TABLE = "relative_position_bias_table"

# Slide-Swin as its authors train it: two convolutions instead of one learned kernel.
SLIDE_SWIN = (
    Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
    Rule(
        "layers.{stage-1}.downsample.{layer:norm|reduction}.{kind}", DOWNSAMPLE + "{layer}.{kind}"
    ),
    Rule(SWIN_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(SWIN_BLOCK + "attn.qkv.{kind}", BLOCK + "mixer.qkv.{kind}", heads_in_layers),
    Rule(SWIN_BLOCK + "attn.proj.{kind}", BLOCK + "mixer.proj.{kind}"),
    Rule(
        SWIN_BLOCK + "attn.dep_conv.weight", BLOCK + "mixer.deformed_kernel", kernel_without_shift
    ),
    Rule(SWIN_BLOCK + "attn.dep_conv1.weight", BLOCK + "mixer.deformed_kernel", kernel),
    Rule(
        SWIN_BLOCK + "attn.{layer:dep_conv|dep_conv1}.bias", BLOCK + "mixer.shift_bias", kernel_bias
    ),
    Rule(SWIN_BLOCK + "attn." + BIAS_TABLE, BLOCK + "mixer." + BIAS_TABLE, position_bias),
    Rule(SWIN_BLOCK + "attn_mask", None),
    Rule("norm.{kind}", "out_norms.3.{kind}"),
    Rule("head.{kind}", "head.fc.{kind}"),
)
# Microsoft's, and timm's before version 0.8.
SWIN = (
    Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
    Rule(
        "layers.{stage-1}.downsample.{layer:norm|reduction}.{kind}", DOWNSAMPLE + "{layer}.{kind}"
    ),
    Rule(SWIN_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(SWIN_BLOCK + "attn.{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(SWIN_BLOCK + "attn." + BIAS_TABLE, BLOCK + "mixer." + BIAS_TABLE),
    Rule(SWIN_BLOCK + "attn_mask", None),
    Rule("norm{stage}.{kind}", "out_norms.{stage}.{kind}"),  # In Microsoft's detectors.
    Rule("norm.{kind}", "out_norms.3.{kind}"),
    Rule("head.{kind}", "head.fc.{kind}"),
)
SWIN_TIMM = (
    Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
    Rule(
        "layers.{stage}.downsample.{layer:norm|reduction}.{kind}",
        DOWNSAMPLE + "{layer}.{kind}",
    ),
    Rule(SWIN_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(SWIN_BLOCK + "attn.{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(SWIN_BLOCK + "attn." + BIAS_TABLE, BLOCK + "mixer." + BIAS_TABLE),
    Rule("norm.{kind}", "out_norms.3.{kind}"),
    Rule("head.fc.{kind}", "head.fc.{kind}"),
)
# MMDetection's and MMSegmentation's; patch merging in the order of torch's unfold.
SWIN_MMDET = (
    Rule("patch_embed.projection.{kind}", "stages.0.downsample.proj.{kind}"),
    Rule("patch_embed.norm.{kind}", "stages.0.downsample.norm.{kind}"),
    Rule(
        "stages.{stage-1}.downsample.{layer:norm|reduction}.{kind}",
        DOWNSAMPLE + "{layer}.{kind}",
        from_unfold,
    ),
    Rule(BLOCK + "{layer:norm1|norm2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(BLOCK + "attn.w_msa.{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(BLOCK + "attn.w_msa." + BIAS_TABLE, BLOCK + "mixer." + BIAS_TABLE),
    Rule(BLOCK + "ffn.layers.0.0.{kind}", BLOCK + "mlp.fc1.{kind}"),
    Rule(BLOCK + "ffn.layers.1.{kind}", BLOCK + "mlp.fc2.{kind}"),
    Rule("norm{stage}.{kind}", "out_norms.{stage}.{kind}"),
)
# The class token, its norm and its classifier have no counterpart.
PVT = (
    Rule("patch_embed{stage+1}.{layer:proj|norm}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
    Rule("pos_embed{stage+1}", "stages.{stage}.position.table", position_map),
    Rule(PVT_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(PVT_BLOCK + "attn.{layer:q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule("cls_token", None),
    Rule("norm.{kind}", None),
    Rule("head.{kind}", None),
)
PVT_MMDET = (
    Rule("layers.{stage}.0.projection.{kind}", DOWNSAMPLE + "proj.{kind}"),
    Rule("layers.{stage}.0.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
    Rule("layers.{stage}.1.0.pos_embed", "stages.{stage}.position.table", position_map),
    Rule(MMDET_PVT_BLOCK + "{layer:norm1|norm2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(MMDET_PVT_BLOCK + "attn.attn.in_proj_{kind}", BLOCK + "mixer.q.{kind}", query_rows),
    Rule(MMDET_PVT_BLOCK + "attn.attn.in_proj_{kind}", BLOCK + "mixer.kv.{kind}", key_value_rows),
    Rule(MMDET_PVT_BLOCK + "attn.attn.out_proj.{kind}", BLOCK + "mixer.proj.{kind}"),
    Rule(MMDET_PVT_BLOCK + "attn.{layer:sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(MMDET_PVT_BLOCK + "ffn.layers.0.{kind}", BLOCK + "mlp.fc1.{kind}", linear),
    Rule(MMDET_PVT_BLOCK + "ffn.layers.3.{kind}", BLOCK + "mlp.fc2.{kind}", linear),
)
PVT_V2 = (
    Rule("patch_embed{stage+1}.{layer:proj|norm}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
    Rule(PVT_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(PVT_BLOCK + "attn.{layer:q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(PVT_BLOCK + "mlp.dwconv.dwconv.{kind}", BLOCK + "mlp.dwconv.{kind}"),
    Rule("norm{stage+1}.{kind}", "stages.{stage}.norm.{kind}"),
    Rule("head.{kind}", "head.fc.{kind}"),
)
PVT_V2_TIMM = (
    Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
    Rule(DOWNSAMPLE + "{layer:proj|norm}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
    Rule(BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2|mlp.dwconv}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(BLOCK + "attn.{layer:q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule("stages.{stage}.norm.{kind}", "stages.{stage}.norm.{kind}"),
    Rule("head.{kind}", "head.fc.{kind}"),
)
PVT_V2_MMDET = (
    Rule("layers.{stage}.0.projection.{kind}", DOWNSAMPLE + "proj.{kind}"),
    Rule("layers.{stage}.0.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
    Rule(MMDET_PVT_V2_BLOCK + "{layer:norm1|norm2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(MMDET_PVT_V2_BLOCK + "attn.attn.in_proj_{kind}", BLOCK + "mixer.q.{kind}", query_rows),
    Rule(
        MMDET_PVT_V2_BLOCK + "attn.attn.in_proj_{kind}", BLOCK + "mixer.kv.{kind}", key_value_rows
    ),
    Rule(MMDET_PVT_V2_BLOCK + "attn.attn.out_proj.{kind}", BLOCK + "mixer.proj.{kind}"),
    Rule(MMDET_PVT_V2_BLOCK + "attn.{layer:sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(MMDET_PVT_V2_BLOCK + "ffn.layers.0.{kind}", BLOCK + "mlp.fc1.{kind}", linear),
    Rule(MMDET_PVT_V2_BLOCK + "ffn.layers.1.{kind}", BLOCK + "mlp.dwconv.{kind}"),
    Rule(MMDET_PVT_V2_BLOCK + "ffn.layers.4.{kind}", BLOCK + "mlp.fc2.{kind}", linear),
    Rule("layers.{stage}.2.{kind}", "stages.{stage}.norm.{kind}"),
)
# Our own, of all families, with and without sliding stages, deployed or not.
SLIDE_MM = (
    Rule(DOWNSAMPLE + "{layer:proj|norm|reduction}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
    Rule("stages.{stage}.position.table", "stages.{stage}.position.table"),
    Rule(BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2|mlp.dwconv}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(BLOCK + "mixer.{layer:qkv|q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
    Rule(
        BLOCK + "mixer.{table:deformed_kernel|shift_bias|" + BIAS_TABLE + "}",
        BLOCK + "mixer.{table}",
    ),
    Rule(BLOCK + "mixer.merged_kernel", BLOCK + "mixer.deformed_kernel", kernel_without_shift),
    Rule("stages.{stage}.norm.{kind}", "stages.{stage}.norm.{kind}"),
    Rule("out_norms.{stage}.{kind}", "out_norms.{stage}.{kind}"),
    Rule("head.fc.{kind}", "head.fc.{kind}"),
)

SOURCES = {
    "slide-mm": Source(None, SLIDE_MM),
    "swin": Source("SlideSwin", SWIN),
    "swin-timm": Source("SlideSwin", SWIN_TIMM),
    "swin-mmdet": Source("SlideSwin", SWIN_MMDET),
    "slide-swin": Source("SlideSwin", SLIDE_SWIN),
    "pvt": Source("SlidePVT", PVT),
    "pvt-mmdet": Source("SlidePVT", PVT_MMDET),
    "pvtv2": Source("SlidePVTv2", PVT_V2),
    "pvtv2-timm": Source("SlidePVTv2", PVT_V2_TIMM),
    "pvtv2-mmdet": Source("SlidePVTv2", PVT_V2_MMDET),
}
