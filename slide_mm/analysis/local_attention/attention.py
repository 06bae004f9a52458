"""What the sliding blocks attend to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from slide_mm.analysis.local_attention.photographs import Photograph
from slide_mm.analysis.local_attention.section import Picture, Section, make_grid
from slide_mm.layers import Block, SlideAttention
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.ops import slide_attention_weights

_TEXT = """\
Every sliding block gives each pixel K*K attention weights a head, which sum to 1. The entropy is \
that of the weights over log(K*K): 1 where all taps weigh the same, 0 where one has all. A tap \
wins at a pixel where its weight is the largest. Points of interest are those given, or else \
where the image changes most."""


class BlockWeights(NamedTuple):
    """Attention weights (H, W, num_heads, K*K) of a block, its tokens ``stride`` pixels apart."""

    name: str
    stride: int
    weights: Tensor


def sliding_blocks(model: HierarchicalBackbone) -> Iterator[tuple[str, Block]]:
    """Yield the blocks that slide, each with its name."""
    for index, stage in enumerate(model.stages):
        for number, block in enumerate(stage.blocks):
            if isinstance(block.mixer, SlideAttention):
                yield f"stage {index + 1}, block {number + 1}", block


def check_attention(model: HierarchicalBackbone, photographs: Sequence[Photograph]) -> Section:
    """Show the attention weights of every block that slides, of a backbone in evaluation mode."""
    numbers: dict[str, Any] = {}
    pictures: list[Picture] = []
    lines: list[list[str]] = []
    for index, photograph in enumerate(photographs, start=1):
        blocks = attention_weights(model, photograph.tensor)
        numbers[photograph.name] = {
            "points": [list(point) for point in photograph.points],
            "blocks": {x.name: _describe(x, photograph.points) for x in blocks},
        }
        described = numbers[photograph.name]["blocks"]
        lines += [[photograph.name, *_cells(name, x)] for name, x in described.items()]
        pictures += _draw_photograph(photograph, blocks, described, f"attention_{index}")
    return Section(
        name="attention",
        title="What do the sliding blocks attend to?",
        text=_TEXT,
        numbers=numbers,
        findings=[
            f"{line[0]}, {line[1]}: mean entropy {line[2]}, most wins {line[3]}" for line in lines
        ],
        header=["image", "block", "mean entropy", "most wins", "entropy of each head"],
        lines=lines,
        pictures=pictures,
    )


@torch.inference_mode()
def attention_weights(model: HierarchicalBackbone, image: Tensor) -> list[BlockWeights]:
    """Compute the attention weights of all sliding blocks for an image (1, 3, H, W)."""
    inputs: dict[str, Tensor] = {}
    handles = [
        block.mixer.register_forward_pre_hook(
            lambda _mixer, args, name=name: inputs.__setitem__(name, args[0])
        )
        for name, block in sliding_blocks(model)
    ]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return [
        BlockWeights(
            name,
            round(image.shape[2] / inputs[name].shape[1]),
            mixer_weights(block.mixer, inputs[name])[0].cpu(),
        )
        for name, block in sliding_blocks(model)
    ]


def mixer_weights(mixer: SlideAttention, x: Tensor) -> Tensor:
    """Attention weights of a layer for tokens (B, H, W, C): (B, H, W, num_heads, K*K)."""
    query, key, _ = mixer.qkv(x).unflatten(-1, (3, mixer.num_heads, mixer.head_dim)).unbind(3)
    return slide_attention_weights(
        query, key, mixer.kernel, mixer.shift_bias, mixer.relative_position_bias_table
    )


def relative_entropy(weights: Tensor) -> Tensor:
    """Entropy of weights (..., K*K) over that of equal ones, from 0 to 1."""
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])


def count_wins(weights: Tensor) -> Tensor:
    """How often each tap has the largest of the weights (..., num_heads, K*K), by head."""
    taps = weights.shape[-1]
    winners = weights.argmax(-1).flatten(0, -2)
    return torch.nn.functional.one_hot(winners, taps).float().mean(0)


def _token_of(block: BlockWeights, point: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the token that holds a pixel (x, y)."""
    height, width = block.weights.shape[:2]
    return min(point[1] // block.stride, height - 1), min(point[0] // block.stride, width - 1)


def _describe(block: BlockWeights, points: Sequence[tuple[int, int]]) -> dict[str, Any]:
    entropy = relative_entropy(block.weights)
    return {
        "entropy": entropy.mean((0, 1)).tolist(),
        "wins": count_wins(block.weights).tolist(),
        "weights_at_points": [block.weights[_token_of(block, x)].tolist() for x in points],
    }


def _cells(name: str, described: Mapping[str, Any]) -> list[str]:
    entropy, wins = (torch.tensor(described[key]) for key in ("entropy", "wins"))
    mean_wins = wins.mean(0)
    tap, size = int(mean_wins.argmax()), math.isqrt(len(mean_wins))
    row, column = tap // size - size // 2, tap % size - size // 2
    return [
        name,
        f"{entropy.mean():.4f}",
        f"{100 * mean_wins[tap]:.0f} %: tap ({row:+d}, {column:+d})",
        ", ".join(f"{x:.4f}" for x in entropy),
    ]


def _draw_photograph(
    photograph: Photograph,
    blocks: Sequence[BlockWeights],
    described: Mapping[str, Any],
    name: str,
) -> list[Picture]:
    points = f"{photograph.name}: points of interest, and mean entropy"
    shares = (
        f"{photograph.name}: how often each tap has the largest weight, %; rows of a square go "
        "down the image"
    )
    pictures = [
        Picture(f"{name}_entropy", points, _plot_entropy(photograph, blocks)),
        Picture(f"{name}_wins", shares, _plot_wins(described)),
    ]
    for number, point in enumerate(photograph.points, start=1):
        figure = _plot_point(photograph, blocks, point)
        caption = f"{photograph.name}: attention weights at point {number}, %, by block and head"
        pictures.append(Picture(f"{name}_point_{number}", caption, figure))
    return pictures


def _plot_entropy(photograph: Photograph, blocks: Sequence[BlockWeights]) -> Figure:
    height, width = photograph.pixels.shape[:2]
    columns = 2 if width > height else 3
    rows = -(-(len(blocks) + 1) // columns)
    panel_height = 12 / columns * height / width + 0.4
    figure, axes = make_grid(rows, columns, (12, rows * panel_height + 0.8))
    first, *others = axes.flat
    first.imshow(photograph.pixels)
    first.set_title("points of interest")
    for number, (x, y) in enumerate(photograph.points, start=1):
        first.plot(x, y, "o", color="red", fillstyle="none", markersize=12, markeredgewidth=2)
        box = dict(boxstyle="round", facecolor="white", alpha=0.8)
        first.annotate(f"{number}", (x, y), (9, 9), textcoords="offset points", bbox=box)
    maps = [relative_entropy(block.weights).mean(-1) for block in blocks]
    low = min(x.quantile(0.01).item() for x in maps)
    for panel, block, entropy in zip(others, blocks, maps, strict=False):
        picture = panel.imshow(entropy, vmin=low, vmax=1)
        panel.set_title(f"{block.name}: {entropy.mean():.4f}")
    figure.colorbar(
        picture,
        ax=axes,
        label="entropy / log(K*K), mean of the heads",
        location="bottom",
        aspect=60,
        extend="min",
    )
    return figure


def _plot_wins(described: Mapping[str, Any]) -> Figure:
    columns = max(len(x["wins"]) for x in described.values())
    size = (max(5, 1.9 * columns + 1), 2.1 * len(described))
    figure, axes = make_grid(len(described), columns, size)
    for row, (name, x) in zip(axes, described.items(), strict=True):
        for head, (panel, wins) in enumerate(zip(row, x["wins"], strict=False), start=1):
            size = math.isqrt(len(wins))
            square = 100 * torch.tensor(wins).view(size, size)
            panel.imshow(square, cmap="Blues", vmin=0, vmax=100)
            for i in range(size):
                for j in range(size):
                    share = square[i, j].item()
                    color = "white" if share > 60 else "black"
                    panel.text(j, i, f"{share:.0f}", ha="center", va="center", color=color)
            panel.set_title(f"{name}\nhead {head}", fontsize="small")
    return figure


def _plot_point(
    photograph: Photograph, blocks: Sequence[BlockWeights], point: tuple[int, int]
) -> Figure:
    columns = max(block.weights.shape[2] for block in blocks)
    size = (max(5, 1.9 * columns + 1), 2.1 * len(blocks))
    figure, axes = make_grid(len(blocks), columns, size)
    at_point = [block.weights[_token_of(block, point)] for block in blocks]
    high = max(weights.max().item() for weights in at_point)
    for row, block, weights in zip(axes, blocks, at_point, strict=True):
        for head, (panel, head_weights) in enumerate(zip(row, weights, strict=False), start=1):
            picture = _draw_weights(panel, photograph, block, point, head_weights, high)
            panel.set_title(f"{block.name}\nhead {head}", fontsize="small")
    figure.colorbar(picture, ax=axes, label="attention weight", shrink=0.6)
    return figure


def _draw_weights(
    panel: Axes,
    photograph: Photograph,
    block: BlockWeights,
    point: tuple[int, int],
    weights: Tensor,
    high: float,
) -> Any:
    """Lay the K*K weights over the neighbourhood of a pixel."""
    size = math.isqrt(len(weights))
    token_row, token_column = _token_of(block, point)
    panel.imshow(photograph.pixels)
    top, left = ((token - size // 2) * block.stride - 0.5 for token in (token_row, token_column))
    side = size * block.stride
    picture = panel.imshow(
        weights.view(size, size),
        cmap="viridis",
        alpha=0.8,
        vmin=0,
        vmax=high,
        extent=(left, left + side, top + side, top),
    )
    if size == 3:
        for tap, weight in enumerate(weights):
            x = left + (tap % size + 0.5) * block.stride
            y = top + (tap // size + 0.5) * block.stride
            text = f"{100 * weight:.1f}"
            color = "black" if weight > 0.6 * high else "white"
            panel.text(x, y, text, ha="center", va="center", color=color, fontsize="small")
    margin = block.stride
    panel.set(xlim=(left - margin, left + side + margin), ylim=(top + side + margin, top - margin))
    return picture
