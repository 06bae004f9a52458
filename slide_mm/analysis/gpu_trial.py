"""All that is to be known of a GPU, one command after the other."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from slide_mm.analysis.attention_benchmark import SHAPES
from slide_mm.analysis.attention_contenders import FLEX, NATTEN, WINDOW
from slide_mm.analysis.benchmark import DTYPES

ROOT = Path(__file__).parents[2]
# What models are trained in comes first: time may be over before all is measured.
_DTYPES = sorted(DTYPES)
BATCHES = (1, 16)
_CONTENDERS = (WINDOW, "published", "chunked", "triton")
_FAMILIES = ("swin", "pvt", "pvtv2")


def list_commands(
    out: Path,
    device: str = "cuda",
    shapes: Sequence[str] = (*SHAPES, str(SHAPES["A"]._replace(batch=BATCHES[-1]))),
    size: str = "800x1280",
    batches: Sequence[int] = BATCHES,
    rounds: int = 5,
) -> dict[str, list[str]]:
    """Arguments of Python for the tests and all measurements, by what they are.

    Args:
        out: Folder for figures and pictures.
        device: Where to measure.
        shapes: Of attention, for ``benchmark_attention.py``.
        size: Of images.
        batches: Images at a time, of backbones.
        rounds: Times that each runs.
    """
    tools = ROOT / "tools" / "analysis_tools"
    others = [NATTEN] if find_spec("natten") else []

    def measure(tool: str, name: str, dtype: str, *options: str) -> list[str]:
        files = ["--json", f"{out / name}.json", "--out", f"{out / name}.png"]
        common = ["--device", device, "--dtype", dtype, "--rounds", str(rounds)]
        return [str(tools / tool), *options, *common, *files]

    def attention(name: str, dtype: str, shapes: Sequence[str], names: Sequence[str]) -> list[str]:
        options = "--shapes", *shapes, "--contenders", *names
        return measure("benchmark_attention.py", name, dtype, *options)

    commands = {}
    if find_spec("pytest"):
        commands["tests"] = ["-m", "pytest", "-m", "gpu", "-q", "tests/ops", "tests/models"]
    for dtype in _DTYPES:
        commands[f"attention, {dtype}"] = attention(
            f"attention_{dtype}", dtype, shapes, [*_CONTENDERS, *others]
        )
        for batch in batches:
            commands[f"backbones, {dtype}, batch {batch}"] = measure(
                "benchmark_backbones.py",
                f"backbones_{dtype}_{batch}",
                dtype,
                *("--families", *_FAMILIES, "--sizes", size, "--batch", str(batch)),
            )
    # It is compiled for half a minute.
    commands["flex attention"] = attention("flex_attention", _DTYPES[0], shapes[:1], [WINDOW, FLEX])
    return commands


def run_commands(commands: Mapping[str, Sequence[str]], minutes: float) -> dict[str, str]:
    """Run commands of :func:`list_commands` while there is time.

    Returns:
        By the name of each, ``'done'``, or why it isn't.
    """
    end = time.monotonic() + 60 * minutes
    results = {}
    for name, arguments in commands.items():
        left = end - time.monotonic()
        if left < 0:
            results[name] = "left out: the time was over"
            continue
        print(f"\n--- {name}", flush=True)
        try:
            process = subprocess.run([sys.executable, *arguments], cwd=ROOT, timeout=left)
        except subprocess.TimeoutExpired:
            results[name] = "broken off: the time was over"
        else:
            code = process.returncode
            results[name] = f"failed with exit code {code}" if code else "done"
    return results
