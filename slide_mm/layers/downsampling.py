"""Layers that lower the resolution at the head of a stage."""

from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import odd_number, whole_number


def round_up(side: int, multiple: int) -> int:
    """The next multiple of a number."""
    return (side + multiple - 1) // multiple * multiple


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad tokens (B, H, W, C) with zeros, below and to the right, to multiples of a number."""
    below, right = (round_up(side, multiple) - side for side in x.shape[1:3])
    return F.pad(x, (0, 0, 0, right, 0, below))


class PatchEmbed(nn.Module):
    """A strided convolution and a layer norm.

    Args:
        in_channels: Channels of the input.
        embed_dims: Channels of the output.
        kernel_size: Side of a patch. Equal to the stride for patches that tile the image (Swin,
            PVT), and odd and larger for overlapping ones (PVTv2).
        stride: Step from patch to patch, in input pixels.
        padding: Zeros on each side of the input, for overlapping patches. Default: half a patch.
        bias: Whether the convolution has a bias.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        kernel_size: int,
        stride: int,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        in_channels = whole_number("in_channels", in_channels)
        embed_dims = whole_number("embed_dims", embed_dims)
        stride = whole_number("stride", stride)
        kernel_size = whole_number("kernel_size", kernel_size, stride)
        most = 0
        if kernel_size > stride:
            most = odd_number("kernel_size", kernel_size) // 2
        if padding is None:
            padding = most
        padding = whole_number("padding", padding, (kernel_size - stride + 1) // 2, most)
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, padding, bias=bias)
        # With half a patch of padding, patches reach what is left over at the border.
        self.multiple = 1 if 2 * padding == kernel_size - 1 else stride
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, in_channels) to (B, ceil(H / stride), ceil(W / stride), embed_dims)."""
        if self.multiple > 1:
            x = pad_to_multiple(x, self.multiple)
        # A convolution of channels-last memory gives the same, and the norm needs no copy.
        return self.norm(self.proj(x.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Join 2 x 2 tokens into one and project them.

    Swin Transformer, ICCV 2021, arXiv 2103.14030, section 3.1. The four tokens are joined in the
    order of the authors' code: (0, 0), (1, 0), (0, 1), (1, 1) in (row, column).

    Args:
        in_channels: Channels of the input.
        embed_dims: Channels of the output.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        in_channels = whole_number("in_channels", in_channels)
        embed_dims = whole_number("embed_dims", embed_dims)
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, in_channels) to (B, ceil(H / 2), ceil(W / 2), embed_dims)."""
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.flatten(3)))
