"""PVTv2's layouts."""

from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule
from slide_mm.checkpoints.sources import pvt

_MMDET_BLOCK = "layers.{stage}.1.{block}."
_NORM = "stages.{stage}.norm.{kind}"

LAYOUTS = {
    "pvtv2": (
        *pvt.AUTHORS,
        Rule("block{stage+1}.{block}.mlp.dwconv.dwconv.{kind}", BLOCK + "mlp.dwconv.{kind}"),
        Rule("norm{stage+1}.{kind}", _NORM),
        Rule("head.{kind}", "head.fc.{kind}"),
    ),
    "pvtv2-timm": (
        Rule("patch_embed.{layer:proj|norm}.{kind}", "stages.0.downsample.{layer}.{kind}"),
        Rule(DOWNSAMPLE + "{layer:proj|norm}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
        Rule(
            BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2|mlp.dwconv}.{kind}",
            BLOCK + "{layer}.{kind}",
        ),
        Rule(BLOCK + "attn.{layer:q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(_NORM, _NORM),
        Rule("head.{kind}", "head.fc.{kind}"),
    ),
    "pvtv2-mmdet": (
        *pvt.mmdet(_MMDET_BLOCK, fc2=4),
        Rule(_MMDET_BLOCK + "ffn.layers.1.{kind}", BLOCK + "mlp.dwconv.{kind}"),
        Rule("layers.{stage}.2.{kind}", _NORM),
    ),
}
