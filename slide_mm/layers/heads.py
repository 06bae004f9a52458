"""The check that all multi-head layers share."""


def head_dim_of(embed_dims: int, num_heads: int) -> int:
    """Channels of one head.

    Raises:
        ValueError: If the heads do not divide the channels.
    """
    if num_heads < 1 or embed_dims % num_heads:
        raise ValueError(
            f"embed_dims {embed_dims} is not divisible by num_heads {num_heads}: "
            "change one of them so that every head gets the same number of channels"
        )
    return embed_dims // num_heads
