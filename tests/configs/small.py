"""Which configs are for the smallest archs."""

# Heads whose models take longer than those of the families' papers.
_FURTHER_HEADS = {"atss", "deeplabv3plus", "deformable", "dino", "faster", "mask2former", "rtmdet"}


def is_small(path):
    """The name says the arch: -t-, -tiny, -mini, -b0; of NAT and DiNAT it is NAT's -mini alone.

    Of DAT++ it is what slides.
    """
    names = set(path.stem.replace("_", "-").split("-"))
    if not names.isdisjoint(_FURTHER_HEADS):
        return False
    if not names.isdisjoint({"nat", "dinat"}):
        return {"nat", "mini"} <= names
    if "plus" in names and "slide" not in names:
        return False
    return not names.isdisjoint({"t", "tiny", "mini", "b0"})
