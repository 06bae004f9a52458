"""Exported files in their runtimes."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from slide_mm.engine.reporting import ConfigError
from slide_mm.export.program import ExportedPart

Size = tuple[int, int, int]
ONNX, PACKAGE = ".onnx", ".pt2"
MAX_DIFFERENCE = 1e-3
# Batch, height and width. The third is no multiple of anything, and in the last one window covers
# Slide-Swin's last stage.
CHECKED_SIZES = ((1, 256, 320), (1, 32, 32), (1, 333, 487), (2, 224, 224))


class Opened(NamedTuple):
    """A file that a runtime has opened.

    Attributes:
        run: Maps images (B, C, H, W) to the sequence of outputs.
        notes: What the file says of itself.
    """

    run: Callable[[np.ndarray], Sequence[np.ndarray]]
    notes: dict[str, str]


def open_with_onnxruntime(file: str | Path) -> Opened:
    """Open a file in onnxruntime, on as many threads as PyTorch takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that go on waiting in a loop would slow whatever takes turns with them.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # It would keep memory for one size of image, and give it to tensors of the same shape alone.
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    return Opened(lambda image: session.run(None, {"image": image}), notes)


def open_with_openvino(file: str | Path) -> Opened:
    """Open an ONNX file in OpenVINO, in float32, on as many threads as PyTorch takes."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().read_model(str(file))
    notes = model.get_rt_info(["framework"]).value if model.has_rt_info(["framework"]) else {}
    compiled = openvino.compile_model(model, "CPU", options)
    return Opened(lambda image: list(compiled(image).values()), notes)


def open_with_aotinductor(file: str | Path) -> Opened:
    """Open a package of AOTInductor in PyTorch."""
    package = torch._inductor.aoti_load_package(str(file))

    def run(image: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in package(torch.from_numpy(image))]

    return Opened(run, package.get_metadata())


# By the ends of files' names: the runtimes, and the packages that they are in.
RUNTIMES = {
    ONNX: {"onnxruntime": open_with_onnxruntime, "openvino": open_with_openvino},
    PACKAGE: {"torch": open_with_aotinductor},
}


def check_runtimes(file: str | Path) -> list[str]:
    """The installed runtimes of a file.

    Raises:
        ConfigError: If there is none.
    """
    runtimes = RUNTIMES.get(Path(file).suffix)
    if runtimes is None:
        raise ConfigError(f"{file} is no export: give a file ending in {' or '.join(RUNTIMES)}")
    installed = [name for name in runtimes if is_installed(name)]
    if not installed:
        raise ConfigError(f"no runtime is installed: pip install {' '.join(runtimes)}")
    return installed


def open_file(file: str | Path, runtime: str) -> Opened:
    """Open a file in one of its runtimes.

    Raises:
        ConfigError: If that is impossible, or others have written the file.
    """
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist: check the path")
    try:
        opened = RUNTIMES[Path(file).suffix][runtime](file)
    except Exception as error:  # Runtimes have errors of many kinds.
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{runtime} cannot open {file}: {reason}") from error
    if not {"part", "checkpoint", "size"} <= opened.notes.keys():
        raise ConfigError(f"{file} was not written by tools/deployment/export.py: export it again")
    return opened


def sizes_of(opened: Opened, more: Sequence[Size] = ()) -> Sequence[Size]:
    """The sizes to check a file at: the one that it is for, or several."""
    fixed = json.loads(opened.notes["size"])
    return [tuple(fixed)] if fixed else [*CHECKED_SIZES, *more]


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


def largest_difference(model: ExportedPart, opened: Opened, size: Size) -> float:
    """Compare a runtime with PyTorch on random images.

    Args:
        model: The model in PyTorch.
        opened: The model in a runtime.
        size: Batch, height and width of the images.

    Returns:
        The largest difference over the largest value, of that output where this is the largest.

    Raises:
        ConfigError: If the outputs are not of the same number and shapes.
    """
    image = model.example(size)
    with torch.no_grad():
        expected = [output.numpy() for output in model(image)]
    outputs = opened.run(image.numpy())
    shapes, expected_shapes = ([x.shape for x in arrays] for arrays in (outputs, expected))
    if shapes != expected_shapes:
        raise ConfigError(
            f"the file's outputs have the shapes {shapes}, and the config's model gives "
            f"{expected_shapes}: give the config that it was made from"
        )
    pairs = zip(outputs, expected, strict=True)
    return float(np.max([np.abs(x - y).max() / np.abs(y).max() for x, y in pairs]))
