"""Slide Attention as a layer, with the deformed shifting path."""

import torch
from torch import Tensor, nn

from slide_mm.layers.arguments import odd_number, rate, refuse
from slide_mm.layers.heads import head_dim_of
from slide_mm.ops import BACKENDS, slide_attention_qkvpacked


class SlideAttention(nn.Module):
    """Local self-attention over the K x K neighbourhood of every pixel.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237, section 4: neighbours are fetched by fixed
    shifts plus a learned depth-wise kernel (the deformed shifting path), which is shared by the
    heads, and by key and value. Training and :meth:`switch_to_deploy` give the same output.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads; divides ``embed_dims``.
        kernel_size: Side K of the neighbourhood, odd.
        qkv_bias: Whether the projection to query, key and value has a bias.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.
        backend: See :func:`slide_mm.ops.slide_attention`.

    Attributes:
        reach: How many tokens away a token sees.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int = 3,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise refuse("backend", backend, f"choose one of {', '.join(BACKENDS)}")
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.kernel_size = kernel_size = odd_number("kernel_size", kernel_size)
        self.reach = kernel_size // 2
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.backend = backend
        taps = kernel_size**2
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.deformed_kernel = nn.Parameter(
            torch.empty(self.head_dim, taps, kernel_size, kernel_size)
        )
        self.shift_bias = nn.Parameter(torch.empty(self.head_dim, taps))
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, taps))
        shift = torch.eye(taps).view(taps, kernel_size, kernel_size)
        self.register_buffer("shift", shift, persistent=False)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the learned path as PyTorch starts a depth-wise convolution."""
        bound = 1 / self.kernel_size
        nn.init.uniform_(self.deformed_kernel, -bound, bound)
        nn.init.uniform_(self.shift_bias, -bound, bound)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    @property
    def deployed(self) -> bool:
        """Whether :meth:`switch_to_deploy` has been called."""
        return not isinstance(self.shift_bias, nn.Parameter)

    @property
    def kernel(self) -> Tensor:
        """Shift and learned kernels in one, (head_dim, K*K, K, K)."""
        return self.merged_kernel if self.deployed else self.shift + self.deformed_kernel

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold shifts, learned kernel and biases into constants, which are no parameters."""
        if self.deployed:
            return
        constants = {
            "merged_kernel": self.kernel,
            "shift_bias": self.shift_bias.detach(),
            "relative_position_bias_table": self.relative_position_bias_table.detach(),
        }
        for name in ("shift", "deformed_kernel", "shift_bias", "relative_position_bias_table"):
            delattr(self, name)
        for name, constant in constants.items():
            self.register_buffer(name, constant)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = slide_attention_qkvpacked(
            self.qkv(x).view(*x.shape[:3], 3, self.num_heads, self.head_dim),
            self.kernel,
            self.shift_bias,
            self.relative_position_bias_table,
            backend=self.backend,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x.flatten(-2)))

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}"
