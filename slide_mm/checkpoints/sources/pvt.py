"""PVT's layouts, and what PVTv2's have of them."""

from slide_mm.checkpoints.reshaping import key_value_rows, linear, position_map, query_rows
from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule

_BLOCK = "block{stage+1}.{block}."

# What both versions name alike.
AUTHORS = (
    Rule("patch_embed{stage+1}.{layer:proj|norm}.{kind}", DOWNSAMPLE + "{layer}.{kind}"),
    Rule(_BLOCK + "{layer:norm1|norm2|mlp.fc1|mlp.fc2}.{kind}", BLOCK + "{layer}.{kind}"),
    Rule(_BLOCK + "attn.{layer:q|kv|proj|sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
)


def mmdet(block: str, fc2: int) -> tuple[Rule, ...]:
    """What MMDetection and MMSegmentation name alike in both versions.

    Args:
        block: What the names of a block begin with.
        fc2: Number of the last layer of an MLP.
    """
    return (
        Rule("layers.{stage}.0.projection.{kind}", DOWNSAMPLE + "proj.{kind}"),
        Rule("layers.{stage}.0.norm.{kind}", DOWNSAMPLE + "norm.{kind}"),
        Rule(block + "{layer:norm1|norm2}.{kind}", BLOCK + "{layer}.{kind}"),
        Rule(block + "attn.attn.in_proj_{kind}", BLOCK + "mixer.q.{kind}", query_rows),
        Rule(block + "attn.attn.in_proj_{kind}", BLOCK + "mixer.kv.{kind}", key_value_rows),
        Rule(block + "attn.attn.out_proj.{kind}", BLOCK + "mixer.proj.{kind}"),
        Rule(block + "attn.{layer:sr|norm}.{kind}", BLOCK + "mixer.{layer}.{kind}"),
        Rule(block + "ffn.layers.0.{kind}", BLOCK + "mlp.fc1.{kind}", linear),
        Rule(f"{block}ffn.layers.{fc2}." + "{kind}", BLOCK + "mlp.fc2.{kind}", linear),
    )


LAYOUTS = {
    # The class token, its norm and its classifier have no counterpart.
    "pvt": (
        *AUTHORS,
        Rule("pos_embed{stage+1}", "stages.{stage}.position.table", position_map),
        Rule("cls_token", None),
        Rule("norm.{kind}", None),
        Rule("head.{kind}", None),
    ),
    "pvt-mmdet": (
        *mmdet("layers.{stage}.1.{block+1}.", fc2=3),
        Rule("layers.{stage}.1.0.pos_embed", "stages.{stage}.position.table", position_map),
    ),
}
