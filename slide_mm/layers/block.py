"""The transformer block that every family shares."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from slide_mm.layers.arguments import rate, whole_number
from slide_mm.layers.hooks import is_watched
from slide_mm.ops.compat import is_compiling
from slide_mm.ops.memory import new_empty

# Bytes of an MLP's hidden channels in a band: few enough to be memory that the process has had
# before (measured: docs/performance.md).
_CPU_BAND = 16 << 20
# Rows around a band are computed twice; these are to be few beside its own.
_MIN_ROWS = 16


class Block(nn.Module):
    """Norm, token mixer, norm, MLP, each pair with a residual connection.

    Args:
        embed_dims: Channels C.
        mixer: Maps (B, H, W, C) to the same shape by mixing tokens.
        mlp: Maps (B, H, W, C) to the same shape by mixing channels.
        drop_path: Probability of skipping a residual branch, for each sample.
        norm_eps: Epsilon of both layer norms.

    Raises:
        ValueError: If ``embed_dims`` or ``drop_path`` is out of its range.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        embed_dims = whole_number("embed_dims", embed_dims)
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(rate("drop_path", drop_path))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape.

        For inference on a CPU, a block whose tokens see no further than a few rows takes some rows
        at a time: see :meth:`forward_bands`.
        """
        if self._is_banded(x):
            batch, _, width, _ = x.shape
            row = batch * width * self.mlp.fc1.out_features * x.element_size()
            if row * x.shape[1] > self.mlp.banded_from:
                return self.forward_bands(x, max(_CPU_BAND // row, _MIN_ROWS))
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def forward_bands(self, x: Tensor, num_rows: int) -> Tensor:
        """:meth:`forward` for ``num_rows`` at a time, without gradients.

        At high resolution the system gives fresh memory for every tensor of the whole map, and
        touching it takes longer than some of the work.
        """
        height = x.shape[1]
        output = new_empty(x, x.shape)
        for first in range(0, height, num_rows):
            rows = slice(first, min(first + num_rows, height))
            seen = _widen(rows, self.mlp.reach, height)
            all_seen = _widen(seen, self.mixer.reach, height)
            mixed = self.mixer(self.norm1(x[:, all_seen]))
            band = x[:, seen] + mixed[:, _inside(seen, all_seen)]
            branch = self.mlp(self.norm2(band))
            rows_of_band = _inside(rows, seen)
            torch.add(band[:, rows_of_band], branch[:, rows_of_band], out=output[:, rows])
        return output

    def _is_banded(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and type(x) is Tensor  # No fake one.
            and hasattr(self.mixer, "reach")
            and hasattr(self.mlp, "banded_from")
            and not (self.training or torch.is_grad_enabled())
            and not (is_compiling() or torch.jit.is_tracing())
            and not is_watched(self)
        )


def _widen(rows: slice, reach: int, height: int) -> slice:
    return slice(max(rows.start - reach, 0), min(rows.stop + reach, height))


def _inside(rows: slice, others: slice) -> slice:
    """Where rows are among others."""
    return slice(rows.start - others.start, rows.stop - others.start)
