"""Shapes of other layouts turned into ours: the functions of the tables in sources/."""

from collections.abc import Callable

import torch
from torch import Tensor

# Looks up what stands beside a tensor's layer in the checkpoint.
Beside = Callable[[str], Tensor | None]
Reshape = Callable[[Tensor, Beside], Tensor]


def unchanged(tensor: Tensor, _: Beside) -> Tensor:
    """Keep the shape."""
    return tensor


def heads_in_layers(tensor: Tensor, beside: Beside) -> Tensor:
    """Sort rows of a sliding block from ``q_0 k_0 v_0 q_1 ...`` to ``q_0 q_1 ... k_0 ...``."""
    if beside("dep_conv1.weight") is None:
        return tensor
    num_heads = beside("relative_position_bias_table").shape[1]
    return tensor.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def kernel(tensor: Tensor, _: Beside) -> Tensor:
    """(head_dim * K*K, 1, K, K) to (head_dim, K*K, K, K), which may be there already."""
    return tensor.reshape(-1, tensor.shape[-1] ** 2, *tensor.shape[-2:])


def kernel_without_shift(tensor: Tensor, beside: Beside) -> Tensor:
    """:func:`kernel` without the fixed shift, 1 at tap p of output p."""
    tensor = kernel(tensor, beside)
    return tensor - torch.eye(tensor.shape[1], dtype=tensor.dtype).view(tensor.shape[1:])


def kernel_bias(tensor: Tensor, beside: Beside) -> Tensor:
    """(head_dim * K*K,) to (head_dim, K*K)."""
    return tensor.unflatten(0, (-1, beside("dep_conv1.weight").shape[-1] ** 2))


def position_bias(tensor: Tensor, _: Beside) -> Tensor:
    """(1, num_heads, 1, K*K, 1, 1) of a sliding block to (num_heads, K*K)."""
    return tensor.view(tensor.shape[1], -1) if tensor.ndim == 6 else tensor


def position_map(tensor: Tensor, _: Beside) -> Tensor:
    """(1, N, C), N a square number or, with a class token, one more, to (1, C, side, side)."""
    side = int(tensor.shape[1] ** 0.5)
    return tensor[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def linear(tensor: Tensor, _: Beside) -> Tensor:
    """1 x 1 convolution to linear layer."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def query_rows(tensor: Tensor, _: Beside) -> Tensor:
    """First third of the rows."""
    return tensor[: len(tensor) // 3]


def key_value_rows(tensor: Tensor, _: Beside) -> Tensor:
    """Second and last third of the rows."""
    return tensor[len(tensor) // 3 :]


def key_rows(tensor: Tensor, beside: Beside) -> Tensor:
    """Projection to keys, 1 x 1 convolution or linear layer, as that to keys and values."""
    rows = linear(tensor, beside)
    return torch.cat([rows, torch.zeros_like(rows)])


def value_rows(tensor: Tensor, beside: Beside) -> Tensor:
    """Like :func:`key_rows`, for values: the two add up."""
    rows = linear(tensor, beside)
    return torch.cat([torch.zeros_like(rows), rows])


def from_unfold(tensor: Tensor, _: Beside) -> Tensor:
    """Sort 2 x 2 patches from (C, row, column) to (column, row, C), in the last dimension."""
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
