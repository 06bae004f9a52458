"""Neighbourhood attention as a function of tensors.

A position of a side has K neighbours on it: those around it in its residue class modulo the
dilation. Near an end they are the K of the class that are nearest to the end; nothing is padded.
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slide_mm.ops import compat, neighbourhood_tiles
from slide_mm.ops.arguments import check_numbers, check_tokens

_LAYOUT = "(B, H, W, 3, num_heads, head_dim)"


def neighbourhood_attention(
    qkv: Tensor,
    position_bias: Tensor,
    dilation: int = 1,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Let every token attend to the K x K tokens around it.

    Neighborhood Attention Transformer, CVPR 2023, arXiv 2204.07143, section 3; with a dilation,
    Dilated Neighborhood Attention Transformer, arXiv 2209.15001, section 3:

        out(x) = sum_y softmax_y(scale * query(x) . key(y) + position_bias(y - x)) value(y)

    The sum is over the neighbours y of x, always K*K.

    Args:
        qkv: (B, H, W, 3, num_heads, head_dim). Any strides, any batch size, also 0.
        position_bias: (num_heads, 2K - 1, 2K - 1), K odd, by the rows and columns from query to
            key, in steps of the dilation, of which there are up to K - 1 either way.
        dilation: Step from neighbour to neighbour; K * dilation is at most H and W.
        scale: Factor of the query; ``head_dim ** -0.5`` when None.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, num_heads, head_dim), in the dtype of ``qkv``.

    Raises:
        ValueError: If an argument is of another kind or out of its range, or the shapes, types or
            devices do not fit together.
    """
    _check(qkv, position_bias, dilation)
    check_numbers(scale, dropout_p)
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    # By the module's name: PyTorch 2.1's Dynamo would put the result in the function's place.
    if dropout_p > 0 or compat.is_recorded():
        return attend_in_tiles(qkv, position_bias.to(qkv.dtype), dilation, scale, dropout_p)
    return torch.ops.slide_mm.neighbourhood_attention(qkv, position_bias, dilation, scale)


def definition(
    qkv: Tensor, position_bias: Tensor, dilation: int = 1, scale: float | None = None
) -> Tensor:
    """Neighbourhood attention as it is defined, token by token, in float64: obviously right.

    See :func:`neighbourhood_attention`, whose arguments these are.
    """
    query, key, value = qkv.double().unbind(3)
    height, width, _, head_dim = query.shape[1:]
    kernel_size = (position_bias.shape[-1] + 1) // 2
    scale = head_dim**-0.5 if scale is None else scale

    def neighbours(position: int, length: int) -> list[int]:
        members = list(range(position % dilation, length, dilation))
        first = members.index(position) - kernel_size // 2
        first = min(max(first, 0), len(members) - kernel_size)
        return members[first : first + kernel_size]

    def places(position: int, others: list[int]) -> list[int]:
        return [(other - position) // dilation + kernel_size - 1 for other in others]

    def token(row: int, column: int) -> Tensor:
        rows, columns = neighbours(row, height), neighbours(column, width)
        keys, values = (x[:, rows][:, :, columns] for x in (key, value))
        bias = position_bias.double()[:, places(row, rows)][:, :, places(column, columns)]
        logits = torch.einsum("bnc,byxnc->bnyx", scale * query[:, row, column], keys) + bias
        weights = logits.flatten(2).softmax(-1).view_as(logits)
        return torch.einsum("bnyx,byxnc->bnc", weights, values)

    rows = (torch.stack([token(y, x) for x in range(width)], 1) for y in range(height))
    return torch.stack(list(rows), 1)


def attend_in_tiles(
    qkv: Tensor, position_bias: Tensor, dilation: int, scale: float, dropout_p: float = 0.0
) -> Tensor:
    """Neighbourhood attention in PyTorch's own operations alone, for sizes that may be symbols.

    As in ``neighbourhood_tiles.py``, but all tiles at once.
    """
    query, key, value = qkv.unbind(3)
    side = position_bias.shape[-1]
    kernel_size = (side + 1) // 2
    rows, columns = (_cut(length, kernel_size, dilation, qkv.device) for length in qkv.shape[1:3])
    query = _lay_out(scale * query, rows.queries, columns.queries)
    key, value = (_lay_out(x, rows.keys, columns.keys) for x in (key, value))
    row, column = rows.places[:, None, :, None, :, None], columns.places[:, None, :, None]
    index = torch.where((row < 0) | (column < 0), side**2, row * side + column)
    # Behind the last is what hides a key.
    table = F.pad(position_bias.flatten(1), (0, 1), value=-torch.inf)
    bias = table[:, index.flatten(4).flatten(2, 3)].permute(1, 2, 0, 3, 4)
    weights = F.dropout((query @ key.mT + bias).softmax(-1), dropout_p)
    tiles = (weights @ value).unflatten(4, (rows.queries.shape[1], -1)).permute(0, 1, 4, 2, 5, 3, 6)
    output = tiles.flatten(3, 4).flatten(1, 2)
    return output.index_select(1, rows.order).index_select(2, columns.order)


class _Side(NamedTuple):
    """A side cut into tiles, each of one residue class modulo the dilation.

    Attributes:
        queries: Their positions, (tiles, queries), the last one again where there are too few.
        keys: Positions of all that a tile's queries see, likewise.
        places: Places in the position bias, (tiles, queries, keys), -1 for those that are hidden.
        order: Where the queries of all positions are, (length,).
    """

    queries: Tensor
    keys: Tensor
    places: Tensor
    order: Tensor


def _cut(length: int, kernel_size: int, dilation: int, device: torch.device) -> _Side:
    arange = partial(torch.arange, device=device)
    # There are two tiles at least: a number that may be 1 or not is two graphs for torch.export.
    size = kernel_size // 2 + 1
    residue = arange(dilation)[:, None, None]
    members = (length - residue + dilation - 1) // dilation
    num_tiles = ((length + dilation - 1) // dilation + size - 1) // size
    num_keys = size + kernel_size - 1
    first = size * arange(num_tiles)[:, None]
    query = (first + arange(size)).minimum(members - 1)
    first_key = (first - kernel_size // 2).minimum(members - num_keys).clamp(min=0)
    key = first_key + arange(num_keys)
    queries, keys = (
        (residue + dilation * x.minimum(members - 1)).flatten(0, 1) for x in (query, key)
    )

    window = (query - kernel_size // 2).clamp(min=0).minimum(members - kernel_size)[..., None]
    query, key = query[..., None], key[:, :, None]
    is_neighbour = (window <= key) & (key < window + kernel_size)
    places = torch.where(is_neighbour, key - query + kernel_size - 1, -1).flatten(0, 1)
    position = arange(length)
    order = position % dilation * (num_tiles * size) + position // dilation
    return _Side(queries, keys, places, order)


def _lay_out(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Lay (B, H, W, num_heads, head_dim) out by tiles.

    Returns:
        (B, tiles of rows, tiles of columns, num_heads, tokens of a tile, head_dim).
    """
    x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    x = x.unflatten(1, (-1, rows.shape[1])).unflatten(3, (-1, columns.shape[1]))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)


def _check(qkv: Tensor, position_bias: Tensor, dilation: int) -> None:
    check_tokens(_LAYOUT, qkv=qkv)
    if qkv.shape[3] != 3:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}: give {_LAYOUT}")
    check_tokens("(num_heads, 2K - 1, 2K - 1)", position_bias=position_bias)
    if position_bias.device != qkv.device:
        raise ValueError(
            f"position_bias is on {position_bias.device}: give it on {qkv.device}, where qkv is"
        )
    num_heads, side = qkv.shape[4], position_bias.shape[-1]
    if position_bias.shape != (num_heads, side, side) or side % 4 != 1:
        raise ValueError(
            f"position_bias has shape {tuple(position_bias.shape)}: give (num_heads, 2K - 1, "
            f"2K - 1), here with {num_heads} heads, and K odd"
        )
    if not isinstance(dilation, Integral) or dilation < 1:
        raise ValueError(f"dilation is {dilation!r}: give a whole number from 1")
    # A side may be a symbol, which has no branches.
    least = (side + 1) // 2 * dilation
    if not compat.is_recorded() and min(qkv.shape[1:3]) < least:
        height, width = qkv.shape[1:3]
        raise ValueError(
            f"qkv is of {height} x {width} tokens: give at least {least} x {least}, K * dilation"
        )


def _forward(qkv: Tensor, position_bias: Tensor, dilation: int, scale: float) -> Tensor:
    with torch.autocast(qkv.device.type, enabled=False):
        return neighbourhood_tiles.forward(qkv, position_bias, dilation, scale)


def _backward(
    qkv: Tensor, position_bias: Tensor, dilation: int, scale: float, output_grad: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.autocast(qkv.device.type, enabled=False):
        gradients = neighbourhood_tiles.backward(qkv, position_bias, dilation, scale, output_grad)
    return gradients[0], gradients[1].to(position_bias.dtype)


def _forward_shape(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv[:, :, :, 0].shape)


def _backward_shapes(qkv: Tensor, position_bias: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), position_bias.new_empty(position_bias.shape)


class _Attention(torch.autograd.Function):
    """The operator with gradients."""

    @staticmethod
    def forward(ctx, qkv: Tensor, position_bias: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(qkv, position_bias)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.slide_mm.neighbourhood_attention(qkv, position_bias, *options)

    @staticmethod
    def backward(ctx, output_grad: Tensor):
        arguments = *ctx.saved_tensors, *ctx.options, output_grad
        gradients = torch.ops.slide_mm.neighbourhood_attention_backward(*arguments)
        return *gradients, None, None


class _Gradients(torch.autograd.Function):
    """The operator's gradients, which have none."""

    @staticmethod
    def forward(ctx, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.slide_mm.neighbourhood_attention_backward(*arguments)

    @staticmethod
    def backward(ctx, *_: Tensor):
        raise RuntimeError("neighbourhood attention has no second derivative")


# The operators live as long as this object. They are registered as those of operator.py.
_LIBRARY = torch.library.Library("slide_mm", "FRAGMENT")


def _register(schema: str, kernels: dict[str, Callable]) -> None:
    _LIBRARY.define(schema)
    for key, kernel in kernels.items():
        _LIBRARY.impl(schema.partition("(")[0], kernel, key)


_register(
    "neighbourhood_attention(Tensor qkv, Tensor position_bias, int dilation, float scale) "
    "-> Tensor",
    {
        "CompositeExplicitAutograd": _forward,
        "Meta": _forward_shape,
        "Autograd": _Attention.apply,
    },
)
_register(
    "neighbourhood_attention_backward(Tensor qkv, Tensor position_bias, int dilation, "
    "float scale, Tensor output_grad) -> (Tensor, Tensor)",
    {
        "CompositeExplicitAutograd": _backward,
        "Meta": _backward_shapes,
        "Autograd": _Gradients.apply,
    },
)


@compat.register_flop_formula(torch.ops.slide_mm.neighbourhood_attention)
def _forward_flops(qkv: torch.Size, position_bias: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * _count_product(qkv, position_bias)


@compat.register_flop_formula(torch.ops.slide_mm.neighbourhood_attention_backward)
def _backward_flops(qkv: torch.Size, position_bias: torch.Size, *_: Any, **__: Any) -> int:
    return 5 * _count_product(qkv, position_bias)


def _count_product(qkv: torch.Size, position_bias: torch.Size) -> int:
    """Operations, two a multiply-add, of one product with K*K neighbours."""
    kernel_size = (position_bias[-1] + 1) // 2
    return 2 * math.prod(qkv) // 3 * kernel_size**2
