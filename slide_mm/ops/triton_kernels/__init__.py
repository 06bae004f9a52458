"""Slide Attention's kernels in Triton; :mod:`slide_mm.ops.gpu_kernel` launches them.

A program has a tile of rows x columns pixels of one head. To mix the neighbours of a pixel is a
matrix product for each tap o, for tensor cores: of (pixels, head_dim) with (head_dim, slots), where
slots are the K*K taps, filled up to a power of two. Neighbours are loaded K*K times, mostly from a
cache. Products are of the tensors' type, sums and the softmax in float32.

Tensors are those of :class:`slide_mm.ops.backends.Backend`, and

    weight        (K*K + 1, K*K, head_dim): kernel[c, p, o] by o, p, c; the bias is one more tap o
    attention     (B, num_heads, H, W, K*K); so is logits_grad
    parts         one row for each part of the gradients of the weights: (K*K + 1, K*K, head_dim) of
                  kernel and bias, and slots of the position bias

No program adds to what another one writes: every run gives the same numbers.
"""

from slide_mm.ops.triton_kernels.backward import (
    key_and_value_gradients,
    query_gradient,
    sum_parts,
    weight_gradients,
)
from slide_mm.ops.triton_kernels.forward import forward

__all__ = [
    "forward",
    "key_and_value_gradients",
    "query_gradient",
    "sum_parts",
    "weight_gradients",
]
