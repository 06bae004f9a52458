"""Models as ONNX files."""

import copy
import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.analysis.benchmark import forward_of, measure_times
from slide_mm.checkpoints import get_state_dict, read_checkpoint
from slide_mm.engine.config import get_task, load_config, require_keys
from slide_mm.engine.outputs import check_output, write_atomically
from slide_mm.engine.preflight import check_checkpoint, check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.layers import SlideAttention

OPSET = 20
# Batch, height and width. The second is no multiple of anything, and the third has a last stage
# that one window covers.
CHECKED_SIZES = ((1, 256, 320), (1, 333, 487), (2, 224, 224))
MAX_DIFFERENCE = 1e-3
# Image that a dynamic graph is traced with; nothing in it equals anything a model may ask for.
_TRACED_SIZE = (2, 232, 296)
# Measured: docs/deployment.md.
_SLIDE_BACKEND = "tap"
PARTS = ("backbone", "whole")

Runner = Callable[[np.ndarray], Sequence[np.ndarray]]


class AdaptiveAveragePool(nn.Module):
    """Adaptive average pooling as two matrix products; ONNX has none for images of any size.

    Args:
        output_size: Side of the square output.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, output_size, output_size)."""
        rows, columns = (self.averages(side, x) for side in x.shape[2:])
        return rows @ x @ columns.t()

    def averages(self, side: int, like: Tensor) -> Tensor:
        """The matrix (output_size, side) that averages one side as PyTorch does."""
        cell = torch.arange(self.output_size, device=like.device)[:, None]
        first = cell * side // self.output_size
        stop = ((cell + 1) * side + self.output_size - 1) // self.output_size
        position = torch.arange(side, device=like.device)
        inside = (first <= position) & (position < stop)
        return inside.to(like.dtype) / (stop - first)


class ExportedPart(nn.Module):
    """What a file computes: features, or a segmentor's scores at the size of the image.

    Args:
        model: A detector or segmentor in evaluation mode.
        part: ``'backbone'``, or ``'whole'`` for a segmentor, or a detector's backbone with neck.
        task: ``'mmdet'`` or ``'mmseg'``.
    """

    def __init__(self, model: nn.Module, part: str, task: str) -> None:
        super().__init__()
        self.model = model.backbone if part == "backbone" else model
        self.part = part
        self.task = task
        self.in_channels = getattr(model.backbone, "in_channels", 3)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map normalised images (B, C, H, W) to a tuple of (B, C', H', W')."""
        if self.part == "backbone":
            return tuple(self.model(image))
        return (
            tuple(self.model.extract_feat(image)) if self.task == "mmdet" else self.segment(image)
        )

    def segment(self, image: Tensor) -> tuple[Tensor]:
        """Class scores, before softmax."""
        head = self.model.decode_head
        scores = head(self.model.extract_feat(image))
        size = image.shape[2:]
        return (F.interpolate(scores, size, mode="bilinear", align_corners=head.align_corners),)


def export_onnx(
    config: str,
    checkpoint: str | None,
    out: str,
    size: tuple[int, int] | None = None,
    static: bool = False,
    part: str = "whole",
) -> list[tuple[tuple[int, int, int], float]]:
    """Write a config's model as an ONNX file of standard operators, and check it.

    Args:
        config: Config file of a detector or segmentor.
        checkpoint: Weights of its model; None for random ones, always the same.
        out: File to write.
        size: Height and width of the images that a static file is for.
        static: Fix batch 1 and the size; otherwise all three may change.
        part: ``'backbone'`` or ``'whole'``: a segmentor end to end, a detector's backbone and neck.

    Returns:
        Sizes and the largest relative difference from PyTorch at each; empty without onnxruntime.

    Raises:
        ConfigError: If the config or an option is wrong, or the model can't be exported.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    cfg = load_config(config)
    require_keys(cfg, "exporting", "model")
    out = check_output(out, (".onnx",))
    _require_packages("onnx", "onnxscript")
    if static and (size is None or min(size) < 1):
        raise ConfigError("--static needs the size of the images: add --size HEIGHT WIDTH")
    model = load_part(cfg, checkpoint, part)
    checked = [(1, *size)] if static else [*CHECKED_SIZES, *([(1, *size)] if size else [])]
    with write_atomically(out) as file:
        _write(model, file, checked[0] if static else None, _describe(cfg, checkpoint, part))
        return _check(model, file, checked)


def load_part(cfg: Config, checkpoint: str | None, part: str) -> ExportedPart:
    """Build a config's model in its deployed form, with the weights of a checkpoint."""
    torch.manual_seed(0)
    model = check_model(cfg, pretrained=False)
    if checkpoint:
        cfg.load_from = checkpoint
        check_checkpoint(cfg, model, whole=True)
        model.load_state_dict(get_state_dict(read_checkpoint(checkpoint)), strict=False)
    model = reparameterize_model(revert_sync_batchnorm(model)).eval()
    return ExportedPart(model, part, get_task(cfg)).eval()


def make_exportable(model: nn.Module) -> None:
    """Replace what ONNX lacks, in place."""
    for module in list(model.modules()):
        if isinstance(module, SlideAttention):
            module.backend = _SLIDE_BACKEND
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AdaptiveAveragePool(child.output_size))


def _write(
    model: ExportedPart, file: Path, size: tuple[int, ...] | None, notes: Mapping[str, str]
) -> None:
    import onnx

    model = copy.deepcopy(model)
    make_exportable(model)
    batch, height, width = size or _TRACED_SIZE
    image = torch.randn(batch, model.in_channels, height, width)
    dynamic = {0: "batch", 2: "height", 3: "width"} if size is None else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (image,),
            str(file),
            dynamo=False,
            dynamic_axes={"image": dynamic} if dynamic else None,
            opset_version=OPSET,
            input_names=["image"],
        )
    foreign = {node.domain for node in onnx.load(file).graph.node} - {"", "ai.onnx"}
    if foreign:
        raise ConfigError(f"the model needs operators that ONNX lacks, of {', '.join(foreign)}")


def _describe(cfg: Config, checkpoint: str | None, part: str) -> dict[str, str]:
    """What is needed to use the file and to check it again; images are to be normalised before."""
    preprocessor = cfg.model.get("data_preprocessor") or {}
    keys = ("mean", "std", "bgr_to_rgb", "pad_size_divisor")
    notes = {key: json.dumps(preprocessor[key]) for key in keys if key in preprocessor}
    return {"part": part, "checkpoint": checkpoint or "", **notes}


def _check(
    model: ExportedPart, file: Path, sizes: Sequence[tuple[int, int, int]]
) -> list[tuple[tuple[int, int, int], float]]:
    if not _has_package("onnxruntime"):
        return []
    differences = compare(model, open_with_onnxruntime(file), sizes)
    size, worst = max(differences, key=lambda pair: pair[1])
    if not worst <= MAX_DIFFERENCE:
        raise ConfigError(
            f"the exported model differs from PyTorch's by {worst:.1e} at {size}, and not by "
            f"{MAX_DIFFERENCE:.0e} at most: nothing has been written"
        )
    return differences


def compare(
    model: ExportedPart, run: Runner, sizes: Sequence[tuple[int, int, int]]
) -> list[tuple[tuple[int, int, int], float]]:
    """Compare a runtime's outputs with PyTorch's on random images.

    Args:
        model: PyTorch's model.
        run: The runtime's.
        sizes: Batch, height and width of the images.

    Returns:
        Sizes, each with the largest difference over the largest value, of all outputs.
    """
    differences = []
    for batch, height, width in sizes:
        image = torch.randn(batch, model.in_channels, height, width)
        with torch.no_grad():
            expected = [output.numpy() for output in model(image)]
        pairs = zip(run(image.numpy()), expected, strict=True)
        worst = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)
        differences.append(((batch, height, width), worst))
    return differences


def open_with_onnxruntime(file: str | Path) -> Runner:
    """A function that runs the file in onnxruntime, on PyTorch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def open_with_openvino(file: str | Path) -> Runner:
    """A function that runs the file in OpenVINO, in float32, on PyTorch's number of threads."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    return lambda image: list(compiled(image).values())


RUNTIMES = {"onnxruntime": open_with_onnxruntime, "openvino": open_with_openvino}


def check_onnx(
    file: str,
    config: str,
    checkpoint: str | None = None,
    size: tuple[int, int] = (800, 1280),
    rounds: int = 5,
) -> dict[str, Any]:
    """Compare an exported file with PyTorch's deployed form, in numbers and in time.

    Args:
        file: What :func:`export_onnx` has written.
        config: Config file it was made from.
        checkpoint: Weights it was made from. Default: those that the file names.
        size: Height and width for the latencies, unless the file is for one size only.
        rounds: Times that each runs, by turns.

    Returns:
        ``threads``, ``size``, ``ms`` by runtime, the median, and ``differences`` by runtime: sizes
        with the largest relative difference at each.

    Raises:
        ConfigError: If the file or config is wrong, or neither runtime is installed.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    cfg = load_config(config)
    require_keys(cfg, "checking", "model")
    runtimes = {name: open_file for name, open_file in RUNTIMES.items() if _has_package(name)}
    if not runtimes:
        raise ConfigError("neither onnxruntime nor openvino is installed: pip install onnxruntime")
    notes, fixed = _read_notes(file)
    model = load_part(cfg, checkpoint or notes["checkpoint"] or None, notes["part"])
    runs = {name: open_file(file) for name, open_file in runtimes.items()}
    sizes = [fixed] if fixed else CHECKED_SIZES
    try:
        differences = {name: compare(model, run, sizes) for name, run in runs.items()}
    except ValueError as error:
        raise ConfigError(f"{file} is not of the model of {config}: {error}") from error
    height, width = fixed[1:] if fixed else size
    image = torch.randn(1, model.in_channels, height, width)
    contenders = {"pytorch": forward_of(partial(model, image))}
    contenders |= {name: partial(run, image.numpy()) for name, run in runs.items()}
    times = measure_times(contenders, rounds, torch.device("cpu"), f"{height}x{width}")
    return {
        "threads": torch.get_num_threads(),
        "size": (height, width),
        "ms": {name: time.median for name, time in times.items()},
        "differences": differences,
    }


def _read_notes(file: str) -> tuple[dict[str, str], tuple[int, int, int] | None]:
    """What the file says of itself, and the one size that it is for, if it is."""
    _require_packages("onnx")
    import onnx

    try:
        model = onnx.load(file)
    except Exception as error:  # Parsing damaged bytes can raise anything.
        raise ConfigError(f"{file} cannot be read as ONNX: {error}") from error
    notes = {entry.key: entry.value for entry in model.metadata_props}
    if not {"part", "checkpoint"} <= notes.keys():
        raise ConfigError(f"{file} was not written by export_onnx.py: export it again")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    batch, _, height, width = (dim.dim_value for dim in dims)
    return notes, (batch, height, width) if batch and height and width else None


def _require_packages(*names: str) -> None:
    missing = [name for name in names if not _has_package(name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")


def _has_package(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
