"""Whether features move with the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from slide_mm.analysis.local_attention.photographs import Photograph, central_crop
from slide_mm.analysis.local_attention.section import Picture, Section, make_grid
from slide_mm.analysis.local_attention.stages import mixer_names, stage_features, stride_of

MAX_SIDE = 1024
_TEXT = """\
Two crops of one size are taken from the image, the second one stride of the stage further down \
and to the right. Where they overlap, features that move with the image are the same, one token \
apart. The error is the norm of what has changed over the norm of the features, in the middle \
half of the crops' height and width, so that the border is at least a quarter of a side away: \
beyond the reach of a sliding stage (see the receptive field), but not of a stage that sees \
everything. Each stage also inherits what the stages before it have done: features of a later \
stage need not move with the image though the stage's own attention does."""


def check_equivariance(
    models: Mapping[str, nn.Module],
    photographs: Sequence[Photograph],
    fields: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Section:
    """Measure how much the features of each stage change when the image moves by one stride.

    Args:
        models: Backbones by name, in evaluation mode.
        photographs: Images; errors are averaged over them.
        fields: By model and stage, what ``describe_field`` says of the receptive field.
    """
    numbers: dict[str, Any] = {}
    maps: dict[str, list[Tensor]] = {}
    for name, model in models.items():
        results = [measure_changes(model, photograph.tensor) for photograph in photographs]
        maps[name] = [change for change, _ in results[0]]
        errors = torch.tensor([[error for _, error in result] for result in results]).mean(0)
        margins = [min(_crop_size(x.tensor)) // 4 for x in photographs]
        numbers[name] = [
            {
                "stage": stage + 1,
                "mixer": mixer,
                "stride": stride_of(stage),
                "error": error,
                "border_excluded": field["reach"] is not None
                and field["reach"] + stride_of(stage) <= min(margins),
            }
            for stage, (mixer, error, field) in enumerate(
                zip(mixer_names(model, len(errors)), errors.tolist(), fields[name], strict=True)
            )
        ]
    lines = [
        [
            name,
            f"{x['stage']}",
            x["mixer"],
            f"{x['stride']} px",
            f"{x['error']:.1e}",
            "no" if x["border_excluded"] else "yes",
        ]
        for name, stages in numbers.items()
        for x in stages
    ]
    return Section(
        name="equivariance",
        title="Do features move with the image?",
        text=_TEXT,
        numbers=numbers,
        findings=[
            f"{name}: relative error "
            + ", ".join(f"{x['error']:.1e} in stage {x['stage']} ({x['mixer']})" for x in stages)
            for name, stages in numbers.items()
        ],
        header=["model", "stage", "token mixer", "moved by", "relative error", "sees the border"],
        lines=lines,
        pictures=[
            Picture(
                "equivariance",
                f"Change of each token relative to the features' norm, {photographs[0].name}",
                _plot(maps, numbers),
            )
        ],
    )


@torch.inference_mode()
def measure_changes(model: nn.Module, image: Tensor) -> list[tuple[Tensor, float]]:
    """Move an image (1, 3, H, W) by one stride of each stage, and compare the stage's features.

    Returns:
        For each stage the change of every token in the middle of the map, (H', W'), relative to
        the features' root mean square norm, and the relative error of all of them.
    """
    height, width = _crop_size(image)
    crop = central_crop(image, MAX_SIDE)
    still = stage_features(model, crop[..., :height, :width])
    changes = []
    for stage, before in enumerate(still):
        stride = stride_of(stage)
        moved = crop[..., stride : stride + height, stride : stride + width]
        after = stage_features(model, moved)[stage]
        before, after = _middle(before[:, 1:, 1:]), _middle(after[:, :-1, :-1])
        change = (after - before)[0].norm(dim=-1)
        norm = before[0].norm(dim=-1)
        relative = change / norm.square().mean().sqrt()
        changes.append((relative.cpu(), (change.norm() / norm.norm()).item()))
    return changes


def _crop_size(image: Tensor) -> tuple[int, int]:
    """Height and width of the crops: whole tokens of all stages, and room to move."""
    stride = stride_of(3)
    height, width = central_crop(image, MAX_SIDE).shape[2:]
    return (height // stride - 1) * stride, (width // stride - 1) * stride


def _middle(tokens: Tensor) -> Tensor:
    """The middle half of (B, H, W, C) in height and width."""
    height, width = tokens.shape[1:3]
    top, left = -(-height // 4), -(-width // 4)
    return tokens[:, top : height - top, left : width - left]


def _plot(maps: Mapping[str, Sequence[Tensor]], numbers: Mapping[str, Any]) -> Figure:
    columns = max(len(stages) for stages in maps.values())
    figure, axes = make_grid(len(maps), columns, (3.3 * columns + 1, 3.8 * len(maps)))
    for row, (name, stages) in zip(axes, maps.items(), strict=True):
        for panel, change, x in zip(row, stages, numbers[name], strict=False):
            # What hasn't changed at all is drawn in the colour of the least change.
            picture = panel.imshow(change.clamp(min=1e-7), norm=LogNorm(1e-7, 1), cmap="magma")
            title = f"{name}, stage {x['stage']}\n{x['mixer']}\nerror {x['error']:.1e}"
            panel.set_title(title, fontsize="small")
    figure.colorbar(picture, ax=axes, label="relative change (black: 1e-7 and less)", shrink=0.8)
    return figure
