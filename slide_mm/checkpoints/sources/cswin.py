"""The layout of CSWin's authors, of their classifiers and segmentors."""

from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule

_BLOCK = "stage{stage+1}.{block}."

LAYOUTS = {
    "cswin": (
        Rule("stage1_conv_embed.0.{kind}", "stages.0.downsample.proj.{kind}"),
        Rule("stage1_conv_embed.2.{kind}", "stages.0.downsample.norm.{kind}"),
        # The first heads the second stage, and so on.
        Rule("merge{stage}.conv.{kind}", DOWNSAMPLE + "proj.{kind}"),
        Rule("merge{stage}.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
        Rule(_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
        Rule(_BLOCK + "{layer:qkv|proj}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(_BLOCK + "attns.{layer:0|1}.get_v.{kind}", BLOCK + "mixer.lepe.{layer}.{kind}"),
        Rule("norm{stage+1}.{kind}", "out_norms.{stage}.{kind}"),  # In segmentors.
        Rule("norm.{kind}", "out_norms.3.{kind}"),
        Rule("head.{kind}", "head.fc.{kind}"),
    ),
}
