"""What is exported: a deployed model, and its graph in PyTorch's own operations."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.config import Config
from timm.layers import to_2tuple
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from slide_mm.engine.config import get_task
from slide_mm.engine.preflight import check_model, image_channels
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.weights import load_weights
from slide_mm.layers import Mlp, SpatialReductionAttention

PARTS = ("whole", "backbone")
MIN_SIDE = 32
# The example that open sizes are exported with: no side of a map is another's, or a table's.
_EXAMPLE_SIZE = (2, 232, 296)
# Pieces that tokens are cut in where all of them together would need gigabytes.
_NUM_PIECES = 8
# MLPs with so many times their channels inside.
_WIDE = 8


class ExportedPart(nn.Module):
    """What an exported model computes: features, or a segmentor's scores at the image's size.

    Args:
        model: A detector or segmentor.
        part: ``'backbone'``, or ``'whole'`` for a segmentor, or a detector's backbone with neck.
        task: ``'mmdet'`` or ``'mmseg'``.
    """

    def __init__(self, model: nn.Module, part: str, task: str) -> None:
        super().__init__()
        self.in_channels = image_channels(model)
        self.model = model.backbone if part == "backbone" else model
        self.output = "scores" if (part, task) == ("whole", "mmseg") else "features"
        self.part = part

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map normalised images (B, C, H, W) to a tuple of (B, C', H', W')."""
        if self.output == "scores":
            return (self.model.encode_decode(image, [{"img_shape": image.shape[2:]}]),)
        return tuple(
            self.model(image) if self.part == "backbone" else self.model.extract_feat(image)
        )

    def example(self, size: Sequence[int]) -> Tensor:
        """Random images of a batch, height and width."""
        batch, height, width = size
        return torch.randn(batch, self.in_channels, height, width)


def load_part(cfg: Config, checkpoint: str | None, part: str) -> ExportedPart:
    """Build a config's model in its deployed form, for evaluation.

    Args:
        cfg: The config.
        checkpoint: Weights of its model; None for random ones, always the same.
        part: One of ``PARTS``.

    Raises:
        ConfigError: If the model cannot be built.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    torch.manual_seed(0)
    model = check_model(cfg, pretrained=False)
    if checkpoint:
        load_weights(cfg, model, checkpoint)
    return ExportedPart(reparameterize_model(model), part, get_task(cfg)).eval()


def export_program(model: ExportedPart, size: Sequence[int] | None = None) -> ExportedProgram:
    """Write a model down as a graph of PyTorch's own operations.

    Args:
        model: Is changed: parts that need gigabytes at high resolution work in pieces, and some of
            MMSegmentation's are put in another way.
        size: Batch, height and width of the images; None leaves all three open, from 1, 32 and 32.

    Raises:
        ConfigError: If PyTorch can't.
    """
    _adapt(model)
    dynamic = torch.export.Dim.DYNAMIC
    side = dynamic(min=MIN_SIDE)
    shape = {0: dynamic, 2: side, 3: side}
    try:
        with torch.no_grad(), _RollByIndex(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model,
                (model.example(size or _EXAMPLE_SIZE),),
                dynamic_shapes=None if size else (shape,),
            )
    except Exception as error:  # Models of others can do whatever Python can.
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"the model cannot be exported: {reason}") from error


def _adapt(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, SpatialReductionAttention):
            module.attend = partial(in_pieces, module.attend)
        elif isinstance(module, Mlp) and module.fc1.out_features >= _WIDE * module.fc1.in_features:
            module.forward = partial(in_pieces, module.forward)
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptiveAveragePool(child.output_size))
            elif _is_mmseg_upsample(child):
                options = {"mode": child.mode, "align_corners": child.align_corners}
                setattr(module, name, nn.Upsample(scale_factor=child.scale_factor, **options))


def _is_mmseg_upsample(module: nn.Module) -> bool:
    """Whether it computes its output's size as a number of Python, which fixes it."""
    kind = type(module)
    return kind.__name__ == "Upsample" and kind.__module__.startswith("mmseg.") and not module.size


def in_pieces(function: Callable[..., Tensor], tokens: Tensor, *others: Tensor) -> Tensor:
    """Apply a function to some tokens at a time; runtimes hold what is between for all at once.

    Args:
        function: Maps tokens (B, N, C) to tokens of the same shape, each by itself.
        tokens: (B, ..., C).
        *others: What the function takes besides.
    """
    flat = tokens.flatten(1, -2)
    num_tokens = flat.shape[1]
    size = (num_tokens + _NUM_PIECES - 1) // _NUM_PIECES
    # With zeros after the last, pieces are of one size, and never empty.
    padded = F.pad(flat, (0, 0, 0, size * _NUM_PIECES - num_tokens))
    pieces = padded.unflatten(1, (_NUM_PIECES, size)).unbind(1)
    output = torch.cat([function(piece, *others) for piece in pieces], 1)
    return output[:, :num_tokens].view(tokens.shape)


class _RollByIndex(TorchFunctionMode):
    """Puts an index in the place of a roll: ONNX has none by a number that the graph computes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not Tensor.roll:
            return func(*args, **(kwargs or {}))
        x, shifts = args
        for dim, shift in zip(kwargs["dims"], shifts, strict=True):
            side = x.shape[dim]
            place = torch.arange(side) - shift
            place = torch.where(place < 0, place + side, place)
            x = x.index_select(dim, torch.where(place < side, place, place - side))
        return x


class AdaptiveAveragePool(nn.Module):
    """Adaptive average pooling as two matrix products; runtimes have none for open sizes.

    Args:
        output_size: Height and width of the output, or one number for both.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = to_2tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, *output_size)."""
        rows, columns = (
            self.averages(side, size, x)
            for side, size in zip(x.shape[2:], self.output_size, strict=True)
        )
        return rows @ x @ columns.t()

    def averages(self, side: int, size: int, like: Tensor) -> Tensor:
        """The matrix (size, side) that averages one side as PyTorch does."""
        cell = torch.arange(size, device=like.device)[:, None]
        first, stop = cell * side // size, ((cell + 1) * side + size - 1) // size
        position = torch.arange(side, device=like.device)
        inside = (first <= position) & (position < stop)
        return inside.to(like.dtype) / (stop - first)
