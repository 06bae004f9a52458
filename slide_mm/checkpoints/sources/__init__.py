"""Where weights come from: tables of names and shapes, one file a family.

A family's backbone enters them into ``SOURCES`` (:mod:`slide_mm.models.families`).
"""

from slide_mm.checkpoints.reshaping import kernel_without_shift
from slide_mm.checkpoints.rules import BLOCK, DOWNSAMPLE, Rule, Source

# Our own, of all families, with and without sliding stages, deployed or not.
_SLIDE_MM = (
    Rule(DOWNSAMPLE + "{path}", DOWNSAMPLE + "{path}"),
    Rule("stages.{stage}.{layer:position|norm}.{path}", "stages.{stage}.{layer}.{path}"),
    Rule(
        BLOCK + "{layer:local|norm1|mixer|scale1|norm2|mlp|scale2}.{path}",
        BLOCK + "{layer}.{path}",
    ),
    Rule(BLOCK + "mixer.merged_kernel", BLOCK + "mixer.deformed_kernel", kernel_without_shift),
    Rule("out_norms.{stage}.{kind}", "out_norms.{stage}.{kind}"),
    Rule("head.fc.{kind}", "head.fc.{kind}"),
)

SOURCES = {"slide-mm": Source(None, _SLIDE_MM)}
