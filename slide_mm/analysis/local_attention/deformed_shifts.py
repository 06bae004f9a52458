"""Where the learned kernels of Slide Attention really sample."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from slide_mm.analysis.local_attention.attention import sliding_blocks
from slide_mm.analysis.local_attention.section import Picture, Section, make_grid
from slide_mm.models.backbone import HierarchicalBackbone

_COLUMNS = 4
_TEXT = """\
Each tap of Slide Attention sees the neighbourhood through a merged kernel: the fixed shift, 1 at \
its own offset, plus the learned part. The mass of an offset is the square of the kernel's weight \
there: its share in the variance of what the tap sees, if pixels are independent. The centre of \
mass, over all channels of a head, tells where the tap really samples, in tokens from the centre \
pixel. A tap that learned nothing stays on its offset; one with all weights alike moves to the \
centre."""


def check_deformed_shifts(model: HierarchicalBackbone) -> Section:
    """Measure the centres of mass of each tap's merged kernel, in every sliding block."""
    kernels = {name: block.mixer.kernel.detach().cpu() for name, block in sliding_blocks(model)}
    numbers = {name: describe_shifts(kernel) for name, kernel in kernels.items()}
    lines = [
        [
            name,
            f"{x['mean_displacement']:.2f}",
            f"{x['largest_displacement']:.2f}",
            f"{100 * x['share_at_own_offset']:.0f} %",
        ]
        for name, x in numbers.items()
    ]
    return Section(
        name="deformed_shifts",
        title="Where do the deformed shifts sample?",
        text=_TEXT,
        numbers=numbers,
        findings=[
            f"{name}: taps sample {x['mean_displacement']:.2f} tokens from their offsets on "
            f"average; {100 * x['share_at_own_offset']:.0f} % of the mass is on the offset itself"
            for name, x in numbers.items()
        ],
        header=["block", "mean displacement, tokens", "largest", "mass on the tap's own offset"],
        lines=lines,
        pictures=[
            Picture(
                "deformed_shifts",
                "Arrows lead from each tap's offset to its centre of mass; dots are the centres "
                "of single channels",
                _plot(kernels, numbers),
            )
        ],
    )


def centres_of_mass(kernel: Tensor) -> Tensor:
    """Centres of the squared weights of kernels (..., K, K), in tokens from the middle.

    Returns:
        (..., 2): row and column. Where all weights are 0, 0.
    """
    mass = kernel.square()
    mass = mass / mass.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    places = torch.arange(kernel.shape[-1], dtype=mass.dtype) - kernel.shape[-1] // 2
    return torch.stack((mass.sum(-1) @ places, mass.sum(-2) @ places), dim=-1)


def describe_shifts(kernel: Tensor) -> dict[str, Any]:
    """Say where the taps of a merged kernel (head_dim, K*K, K, K) sample."""
    size = kernel.shape[-1]
    over_channels = kernel.square().sum(0).sqrt()
    centres = centres_of_mass(over_channels)
    mass = over_channels.square().flatten(1)
    displacements = (centres - _offsets(size)).norm(dim=-1)
    return {
        "centres": centres.tolist(),
        "displacements": displacements.tolist(),
        "mean_displacement": displacements.mean().item(),
        "largest_displacement": displacements.max().item(),
        "share_at_own_offset": (mass.diagonal() / mass.sum(1)).mean().item(),
    }


def _offsets(kernel_size: int) -> Tensor:
    """Offsets of the taps, (K*K, 2): row and column."""
    side = torch.arange(kernel_size, dtype=torch.float32) - kernel_size // 2
    return torch.cartesian_prod(side, side)


def _plot(kernels: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Figure:
    columns = min(_COLUMNS, len(kernels))
    rows = -(-len(kernels) // columns)
    figure, panels = make_grid(rows, columns, (3.4 * columns, 4.2 * rows))
    for panel, (name, kernel) in zip(panels.flat, kernels.items(), strict=False):
        panel.set_axis_on()
        _draw(panel, kernel, torch.tensor(numbers[name]["centres"]))
        panel.set_title(f"{name}\nmean {numbers[name]['mean_displacement']:.2f} tokens")
    return figure


def _draw(panel: Axes, kernel: Tensor, centres: Tensor) -> None:
    size = kernel.shape[-1]
    reach = size // 2 + 0.6
    for tap, (offset, centre) in enumerate(zip(_offsets(size), centres, strict=True)):
        color = f"C{tap % 10}"
        channels = centres_of_mass(kernel[:, tap])
        panel.scatter(channels[:, 1], channels[:, 0], s=3, color=color, alpha=0.3)
        panel.plot(offset[1], offset[0], "o", color=color, fillstyle="none", markersize=9)
        panel.annotate(
            "",
            xy=(centre[1], centre[0]),
            xytext=(offset[1], offset[0]),
            arrowprops=dict(arrowstyle="->", color=color, lw=1.8, shrinkA=0, shrinkB=0),
        )
    ticks = range(-(size // 2), size // 2 + 1)
    panel.set(xticks=ticks, yticks=ticks, xlim=(-reach, reach), ylim=(reach, -reach))
    panel.set_aspect("equal")
    panel.grid(alpha=0.3)
