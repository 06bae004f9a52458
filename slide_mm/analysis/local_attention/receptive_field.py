"""How far the tokens of each stage see."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

from slide_mm.analysis.local_attention.photographs import Photograph
from slide_mm.analysis.local_attention.section import Picture, Section, make_grid
from slide_mm.analysis.local_attention.stages import mixer_names, stage_features, stride_of

MAX_SIDE = 512
SHARES = (0.5, 0.95)
_NUM_DIRECTIONS = 4
# What pictures show: gradients down to this share of the largest, this far from the token.
_FAINTEST, _TOKENS_SHOWN = 1e-6, 16
_TEXT = """\
How much each pixel matters to the token in the middle of each stage's map: the norm of the \
Jacobian of the token's features, by {directions} random projections backward, on crops of at \
most {side} x {side} around the points of interest (Luo et al., NeurIPS 2016, arXiv 1701.04128, \
take the gradient of the sum of the channels instead, which a layer norm makes constant). The \
radii are those of the discs that hold half and 95 % of it; the reach is half the side of the \
square outside which no pixel matters at all."""


def check_receptive_field(
    models: Mapping[str, nn.Module], photographs: Sequence[Photograph]
) -> Section:
    """Measure each stage's effective receptive field, at the photographs' points of interest."""
    crops = [
        crop_around(x.tensor, point, min(MAX_SIDE, *x.tensor.shape[2:]))
        for x in photographs
        for point in x.points
    ]
    numbers: dict[str, Any] = {}
    fields: dict[str, list[Tensor]] = {}
    for name, model in models.items():
        fields[name] = measure_fields(model, crops)
        numbers[name] = [
            {"stage": stage, "mixer": mixer, **describe_field(field)}
            for stage, (mixer, field) in enumerate(
                zip(mixer_names(model, len(fields[name])), fields[name], strict=True), start=1
            )
        ]
    lines = [
        [
            name,
            f"{x['stage']}",
            x["mixer"],
            *(f"{x[_key(share)]:.0f} px" for share in SHARES),
            "beyond the crop" if x["reach"] is None else f"{x['reach']:.0f} px",
        ]
        for name, stages in numbers.items()
        for x in stages
    ]
    return Section(
        name="receptive_field",
        title="How far does a token see?",
        text=_TEXT.format(directions=_NUM_DIRECTIONS, side=MAX_SIDE),
        numbers=numbers,
        findings=[
            f"{name}: radius of 95 % "
            + ", ".join(f"{x[_key(0.95)]:.0f} px in stage {x['stage']}" for x in stages)
            for name, stages in numbers.items()
        ],
        header=["model", "stage", "token mixer", "radius of 50 %", "radius of 95 %", "reach"],
        lines=lines,
        pictures=[
            Picture(
                "receptive_field",
                "What each pixel matters to the token in the middle, relative to the largest; axes "
                "in pixels; circles hold 50 % and 95 %",
                _plot(fields, numbers),
            )
        ],
    )


def crop_around(image: Tensor, point: tuple[int, int], side: int) -> Tensor:
    """A square of (B, C, H, W), as near to a pixel (x, y) as the border lets it."""
    height, width = image.shape[2:]
    left, top = (
        min(max(0, place - side // 2), size - side)
        for place, size in zip(point, (width, height), strict=True)
    )
    return image[..., top : top + side, left : left + side]


def measure_fields(model: nn.Module, crops: Sequence[Tensor]) -> list[Tensor]:
    """Root mean square gradient of the middle token of each stage, over crops and directions.

    Returns:
        (side, side) for each stage, of crops (1, 3, side, side).
    """
    generator = torch.Generator().manual_seed(0)
    energies: defaultdict[int, Tensor] = defaultdict(lambda: torch.zeros(crops[0].shape[2:]))
    for crop in crops:
        image = crop.detach().clone().requires_grad_()
        for stage, features in enumerate(stage_features(model, image)):
            token = features[0, features.shape[1] // 2, features.shape[2] // 2]
            for _ in range(_NUM_DIRECTIONS):
                direction = torch.randn(len(token), generator=generator).to(token)
                (gradient,) = torch.autograd.grad(token, image, direction, retain_graph=True)
                energies[stage] += gradient[0].square().sum(0).cpu()
    return [energy.sqrt() for energy in energies.values()]


def _key(share: float) -> str:
    return f"radius_{100 * share:.0f}"


def describe_field(field: Tensor) -> dict[str, Any]:
    """Measure a map of gradients (side, side), in pixels.

    Returns:
        The ``centre`` of its squares, (row, column), the radii around it that hold ``SHARES`` of
        the gradient, and the ``reach``: half the side of the square that holds all of it, None
        where that touches the border.
    """
    energy = field.double().square()
    places = torch.arange(len(field), dtype=torch.float64)
    centre = torch.stack((energy.sum(1) @ places, energy.sum(0) @ places)) / energy.sum()
    distance = torch.hypot(places[:, None] - centre[0], places - centre[1]).flatten()
    order = distance.argsort()
    within = field.flatten()[order].double().cumsum(0)
    # The first pixel at which the sum gets there.
    reached = {share: order[(within < share * within[-1]).sum()] for share in SHARES}
    spans = [field.amax(axis).nonzero() for axis in (0, 1)]
    at_border = any(x[0] == 0 or x[-1] == len(field) - 1 for x in spans)
    return {
        "centre": centre.tolist(),
        **{_key(share): distance[pixel].item() for share, pixel in reached.items()},
        "reach": None if at_border else max((x[-1] - x[0] + 1).item() / 2 for x in spans),
    }


def _plot(fields: Mapping[str, Sequence[Tensor]], numbers: Mapping[str, Any]) -> Figure:
    columns = max(len(stages) for stages in fields.values())
    figure, axes = make_grid(len(fields), columns, (3.3 * columns + 1, 3.8 * len(fields)))
    for row, (name, stages) in zip(axes, fields.items(), strict=True):
        for panel, field, x in zip(row, stages, numbers[name], strict=False):
            row_shift, column_shift = x["centre"]
            side = len(field)
            panel.set_axis_on()
            picture = panel.imshow(
                (field / field.max()).clamp(min=_FAINTEST),
                norm=LogNorm(_FAINTEST, 1),
                cmap="magma",
                extent=(-column_shift, side - column_shift, side - row_shift, -row_shift),
            )
            for key in map(_key, SHARES):
                panel.add_patch(Circle((0, 0), x[key], fill=False, color="cyan"))
            around = min(side // 2, _TOKENS_SHOWN * stride_of(x["stage"] - 1))
            panel.set(xlim=(-around, around), ylim=(around, -around))
            panel.set_facecolor("lightgray")  # Outside the crop.
            panel.tick_params(labelsize="small")
            radius = f"95 % within {x[_key(0.95)]:.0f} px"
            title = f"{name}, stage {x['stage']}\n{x['mixer']}\n{radius}"
            panel.set_title(title, fontsize="small")
    figure.colorbar(picture, ax=axes, label=f"gradient (black: {_FAINTEST:g} and less)", shrink=0.8)
    return figure
