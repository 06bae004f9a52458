"""The check that all multi-head layers share."""

from slide_mm.layers.arguments import whole_number


def head_dim_of(embed_dims: int, num_heads: int) -> int:
    """Channels of one head.

    Raises:
        ValueError: If one is no positive whole number, or the heads do not divide the channels.
    """
    embed_dims = whole_number("embed_dims", embed_dims)
    num_heads = whole_number("num_heads", num_heads)
    if embed_dims % num_heads:
        raise ValueError(
            f"embed_dims {embed_dims} is not divisible by num_heads {num_heads}: "
            "change one of them so that every head gets the same number of channels"
        )
    return embed_dims // num_heads
