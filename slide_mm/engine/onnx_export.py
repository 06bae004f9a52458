"""Models as ONNX files."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmengine.config import Config
from timm.layers import to_2tuple
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from slide_mm.engine.config import get_task, load_config, require_keys
from slide_mm.engine.onnx_bands import BandedBlock, ChunkedReduction, ConvMlp, fold_norm
from slide_mm.engine.onnx_windows import IndexedWindowAttention
from slide_mm.engine.outputs import check_output, write_atomically
from slide_mm.engine.preflight import check_model, image_channels
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.runtimes import largest_difference, open_with_onnxruntime, require_packages
from slide_mm.engine.weights import load_weights
from slide_mm.layers import (
    AbsolutePositionEmbedding,
    Block,
    DepthwiseConvMlp,
    ShiftedWindowAttention,
    SlideAttention,
    SpatialReductionAttention,
)
from slide_mm.ops.compat import HAS_ONNX_20
from slide_mm.ops.reference import published

if TYPE_CHECKING:
    import onnx

PARTS = ("whole", "backbone")
# How Slide Attention is written; measured: docs/deployment.md.
FORMS = ("band", "tap", "conv", "published")
_FORMS_WITH_LOOPS = ("band", "published")
OPSET = 20
MIN_SIDE = 32
MAX_DIFFERENCE = 1e-3
# Batch, height and width. The second is no multiple of anything, and in the third one window
# covers Slide-Swin's last stage.
CHECKED_SIZES = ((1, 256, 320), (1, 333, 487), (2, 224, 224))
# What a file for any size is traced with: no side of a map is another's, or a table's.
_TRACED_SIZE = (2, 232, 296)


class ExportedPart(nn.Module):
    """What a file computes: features, or a segmentor's scores at the size of the image.

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


class AdaptiveAveragePool(nn.Module):
    """Adaptive average pooling as two matrix products; ONNX has none for images of any size.

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


class ResizedPositions(nn.Module):
    """Position embeddings whose table is resized by two matrix products.

    onnxruntime takes twice as long to resize PVT's finest table and transpose it.

    Args:
        positions: Its table is taken.
    """

    def __init__(self, positions: AbsolutePositionEmbedding) -> None:
        super().__init__()
        self.register_buffer("table", positions.table.detach()[0].permute(2, 1, 0).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to tokens (B, H, W, C)."""
        _, height, width, channels = x.shape
        size = self.table.shape[0]  # Of both sides.
        rows, columns = self.weights(height, size, x), self.weights(width, size, x)
        # Matrices, not stacks of them: OpenVINO takes a table for weights, and fails for a stack.
        table = (columns @ self.table.flatten(1)).view(-1, size, channels).transpose(0, 1)
        return x + (rows @ table.flatten(1)).view(height, width, channels)

    def weights(self, side: int, size: int, like: Tensor) -> Tensor:
        """The matrix (side, size) that resizes one side by linear interpolation."""
        centre = (torch.arange(side, device=like.device) + 0.5) * size / side - 0.5
        position = torch.arange(size, device=like.device)
        return (1 - (centre.clamp(0, size - 1)[:, None] - position).abs()).relu().to(like.dtype)


class PublishedSlideAttention(nn.Module):
    """A layer's training form, as the paper formulates it: what the other forms are measured by.

    Args:
        layer: Not deployed.
    """

    def __init__(self, layer: SlideAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        layer = self.layer
        inputs = (
            layer.qkv(x).view(*x.shape[:3], 3, layer.num_heads, layer.head_dim),
            layer.shift.expand_as(layer.deformed_kernel),
            layer.deformed_kernel,
            layer.shift_bias,
            layer.relative_position_bias_table,
        )
        return layer.proj(published(*inputs).flatten(-2))


def export_onnx(
    config: str,
    checkpoint: str | None,
    out: str | Path,
    size: Sequence[int] | None = None,
    static: bool = False,
    part: str = "whole",
    form: str = "band",
) -> dict[tuple[int, int, int], float]:
    """Write a config's model as an ONNX file of standard operators, and check it in onnxruntime.

    Args:
        config: Config file of a detector or segmentor.
        checkpoint: Weights of its model; None for random ones, always the same.
        out: File to write.
        size: Height and width of images to check with, and that a static file is for.
        static: Fix batch 1 and the size; otherwise all three may change.
        part: One of ``PARTS``: a segmentor end to end or a detector's backbone and neck, or the
            backbone alone.
        form: One of ``FORMS``: how Slide Attention is written.

    Returns:
        The largest relative difference from PyTorch's deployed form, at each size that was checked.

    Raises:
        ConfigError: If the config or an option is wrong, PyTorch is too old, a package is missing,
            or the model can't be exported.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    if not HAS_ONNX_20:
        raise ConfigError(
            f"exports need PyTorch 2.5 or later, here is {torch.__version__}: run the same command "
            "where there is one; checkpoints are the same for all"
        )
    cfg = load_config(config)
    require_keys(cfg, "exporting", "model")
    out = check_output(out, (".onnx",))
    require_packages("onnx", "onnxruntime")
    _check_size(size, static)
    sizes = [] if static else list(CHECKED_SIZES)
    sizes += [(1, *size)] if size else []
    model = load_part(cfg, checkpoint, part, deployed=form != "published")
    with write_atomically(out) as file:
        _write(_make_exportable(model, form), file, sizes[0] if static else None)
        _finish(file, cfg, checkpoint, part)
        model = load_part(cfg, checkpoint, part)
        return _check(model, file, sizes)


def _check_size(size: Sequence[int] | None, static: bool) -> None:
    if size is None and static:
        raise ConfigError("--static needs the size of the images: add --size HEIGHT WIDTH")
    if size is not None and min(size) < MIN_SIDE:
        height, width = size
        raise ConfigError(f"--size is {height} {width}: give {MIN_SIDE} pixels a side at least")


def load_part(
    cfg: Config, checkpoint: str | None, part: str, deployed: bool = True
) -> ExportedPart:
    """Build what a file computes in PyTorch, for evaluation, with the weights of a checkpoint."""
    torch.manual_seed(0)
    model = check_model(cfg, pretrained=False)
    if checkpoint:
        load_weights(cfg, model, checkpoint)
    if deployed:
        model = reparameterize_model(model)
    return ExportedPart(model, part, get_task(cfg)).eval()


def _make_exportable(model: ExportedPart, form: str) -> ExportedPart:
    """Put what ONNX or a trace lacks in other ways."""
    for block in model.modules():
        if isinstance(block, Block):
            block.norm2, block.mlp.fc1 = fold_norm(block.norm2, block.mlp.fc1)
            if isinstance(block.mixer, SlideAttention):
                block.norm1, block.mixer.qkv = fold_norm(block.norm1, block.mixer.qkv)
    for module in reversed(list(model.modules())):  # Children before those that wrap them.
        for name, child in module.named_children():
            if (
                isinstance(child, Block)
                and isinstance(child.mixer, SlideAttention)
                and form == "band"
            ):
                setattr(module, name, BandedBlock(child))
            elif isinstance(child, SlideAttention) and form == "published":
                setattr(module, name, PublishedSlideAttention(child))
            elif isinstance(child, SlideAttention) and form != "band":
                child.backend = form
            elif isinstance(child, DepthwiseConvMlp):
                setattr(module, name, ConvMlp(child))
            elif isinstance(child, SpatialReductionAttention) and form in _FORMS_WITH_LOOPS:
                setattr(module, name, ChunkedReduction(child))
            elif isinstance(child, ShiftedWindowAttention):
                setattr(module, name, IndexedWindowAttention(child))
            elif isinstance(child, AbsolutePositionEmbedding):
                setattr(module, name, ResizedPositions(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptiveAveragePool(child.output_size))
            elif _is_mmseg_upsample(child):
                options = {"mode": child.mode, "align_corners": child.align_corners}
                setattr(module, name, nn.Upsample(scale_factor=child.scale_factor, **options))
    return model.eval()


def _is_mmseg_upsample(module: nn.Module) -> bool:
    """Whether it computes its output's size in Python, where a trace can't follow."""
    kind = type(module)
    return kind.__name__ == "Upsample" and kind.__module__.startswith("mmseg.") and not module.size


def _write(model: ExportedPart, file: Path, size: tuple[int, int, int] | None) -> None:
    """Trace a model; PyTorch's newer exporter takes minutes for sides that are symbols."""
    batch, height, width = size or _TRACED_SIZE
    image = torch.randn(batch, model.in_channels, height, width)
    with warnings.catch_warnings(), torch.no_grad():
        # Of the exporter's age, and of checks in Python, which the trace leaves out.
        warnings.simplefilter("ignore")
        count = len(model(image))
        names = [model.output] if count == 1 else [f"{model.output}_{i}" for i in range(count)]
        axes = {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names}
        axes["image"] = {0: "batch", 2: "height", 3: "width"}
        try:
            torch.onnx.export(
                torch.jit.trace(model, image, check_trace=False),
                (image,),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes=None if size else axes,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).split("  [Caused by")[0]  # What follows is the whole graph.
            raise ConfigError(f"the model cannot be exported: {reason}") from error


def _finish(file: Path, cfg: Config, checkpoint: str | None, part: str) -> None:
    """Refuse foreign operators, move constants, and note how to use a file and to check it again.

    Images are to be normalised before, as the config's data preprocessor does.
    """
    import onnx

    model = onnx.load(file)
    foreign = {node.domain for node in iterate_nodes(model.graph)} - {"", "ai.onnx"}
    if foreign:
        raise ConfigError(f"the model needs operators that ONNX lacks, of {', '.join(foreign)}")
    _move_constants(model.graph)
    preprocessor = cfg.model.get("data_preprocessor") or {}
    keys = ("mean", "std", "bgr_to_rgb", "pad_size_divisor")
    notes = {key: json.dumps(preprocessor[key]) for key in keys if key in preprocessor}
    onnx.helper.set_model_props(model, {"part": part, "checkpoint": checkpoint or "", **notes})
    onnx.save(model, file)


def _move_constants(graph: "onnx.GraphProto") -> None:
    """Give every loop constants of its own, where onnxruntime can prepare them."""
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    for loop in graph.node:
        for body in (attribute.g for attribute in loop.attribute if attribute.HasField("g")):
            names = {name for node in iterate_nodes(body) for name in node.input}
            own_names = {name: f"{loop.name}/{name}" for name in constants if name in names}
            for name, own_name in own_names.items():
                body.initializer.add().CopyFrom(constants[name])
                body.initializer[-1].name = own_name
            for node in iterate_nodes(body):
                node.input[:] = [own_names.get(name, name) for name in node.input]
    used = {name for node in iterate_nodes(graph) for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)


def iterate_nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """Yield the nodes of a graph and of the graphs inside them, such as the bodies of loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from iterate_nodes(attribute.g)


def _check(
    model: ExportedPart, file: Path, sizes: Sequence[tuple[int, int, int]]
) -> Mapping[tuple[int, int, int], float]:
    try:
        run = open_with_onnxruntime(file)
        differences = {size: largest_difference(model, run, size) for size in sizes}
    except Exception as error:  # onnxruntime has errors of many kinds.
        raise ConfigError(f"the exported model does not run in onnxruntime: {error}") from error
    for size, difference in differences.items():
        if not difference <= MAX_DIFFERENCE:
            raise ConfigError(
                f"the exported model differs from PyTorch's by {difference:.1e} at {size}, more "
                f"than {MAX_DIFFERENCE:.0e}: nothing has been written"
            )
    return differences
