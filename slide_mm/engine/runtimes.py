"""ONNX files in onnxruntime and OpenVINO."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from slide_mm.engine.reporting import ConfigError

Runner = Callable[[np.ndarray], Sequence[np.ndarray]]


def open_with_onnxruntime(file: str | Path) -> Runner:
    """Open a file in onnxruntime, on as many threads as PyTorch takes.

    Returns:
        Maps images (B, C, H, W) to the list of outputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that go on waiting in a loop would slow whatever takes turns with them.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def open_with_openvino(file: str | Path) -> Runner:
    """Open a file in OpenVINO, in float32, on as many threads as PyTorch takes.

    Returns:
        Maps images (B, C, H, W) to the list of outputs.
    """
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    return lambda image: list(compiled(image).values())


RUNTIMES = {"onnxruntime": open_with_onnxruntime, "openvino": open_with_openvino}


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def require_packages(*names: str) -> None:
    """Refuse to go on without some packages.

    Raises:
        ConfigError: If one is not installed; the message says how to install it.
    """
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")


def largest_difference(model: nn.Module, run: Runner, size: tuple[int, int, int]) -> float:
    """Compare a runtime with PyTorch on random images.

    Args:
        model: Maps images to a tuple of outputs, in PyTorch; has ``in_channels``.
        run: Does so in the runtime.
        size: Batch, height and width of the images.

    Returns:
        The largest difference over the largest value, of that output where this is the largest.

    Raises:
        ValueError: If the outputs are not of the same number and shapes.
    """
    batch, height, width = size
    image = torch.randn(batch, model.in_channels, height, width)
    with torch.no_grad():
        expected = [output.numpy() for output in model(image)]
    outputs = run(image.numpy())
    shapes, expected_shapes = ([x.shape for x in arrays] for arrays in (outputs, expected))
    if shapes != expected_shapes:
        raise ValueError(f"outputs have the shapes {shapes}, and PyTorch's have {expected_shapes}")
    pairs = zip(outputs, expected, strict=True)
    return float(np.max([np.abs(x - y).max() / np.abs(y).max() for x, y in pairs]))
