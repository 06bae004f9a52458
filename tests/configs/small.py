"""Which configs are for the smallest archs."""


def is_small(path):
    """The name says the arch: -t-, -tiny, -mini, -b0."""
    return not {"t", "tiny", "mini", "b0"}.isdisjoint(path.stem.replace("_", "-").split("-"))
