"""Time, memory and operations of a backbone, its stages and their attention layers."""

import copy
import ctypes
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slide_mm.analysis.benchmark import read_peak, reset_peak, run_in_fresh_process
from slide_mm.analysis.complexity import counting_flops
from slide_mm.analysis.local_attention.stages import stages_of
from slide_mm.engine.timing import spread_of, synchronize

# Times that each size runs after the run that doesn't count, and those above one and ten seconds.
ROUNDS, SLOW_ROUNDS, SLOWEST_ROUNDS = 7, 3, 1
BACKBONE = "backbone"
_WARM_UP_SIDE = 64
# A name, the module that runs first and the one that runs last.
_Part = tuple[str, nn.Module, nn.Module]


def stage_part(stage: int) -> str:
    """Name of a stage, counted from 0."""
    return f"stage {stage + 1}"


def attention_part(stage: int) -> str:
    """Name of the attention layers of a stage, counted from 0."""
    return f"attention of stage {stage + 1}"


def run_if_it_fits(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """Call a function of a module in a fresh process; None if memory has run out there."""
    try:
        return run_in_fresh_process(function, *arguments)
    except (MemoryError, torch.cuda.OutOfMemoryError, BrokenProcessPool):
        return None  # A system that runs out of memory kills the process.
    except RuntimeError as error:
        if "allocate memory" in str(error):  # PyTorch's own words on a CPU.
            return None
        raise


def measure_forward(pickled: bytes, side: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Measure forward passes: ``ms`` as a spread, and ``mib``, by part."""
    model = pickle.loads(pickled).to(device)
    # Apart, as a block works otherwise when its attention layer is watched.
    groups = outer_parts(model), attention_parts(model)
    times: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        model(torch.randn(1, 3, _WARM_UP_SIDE, _WARM_UP_SIDE, device=device))
        image = torch.randn(1, 3, side, side, device=device)
        memory = _Memory(device)
        for parts in groups:
            start = time.perf_counter()
            with watch(parts, memory.begin, memory.end):
                model(image)
            seconds = time.perf_counter() - start
            rounds = SLOW_ROUNDS if seconds > 1 else ROUNDS
            for _ in range(SLOWEST_ROUNDS if seconds > 10 else rounds):
                tally = _Tally(lambda: _milliseconds(device))
                with watch(parts, tally.begin, tally.end):
                    model(image)
                for part, total in tally.totals.items():
                    times[part].append(total)
    return {
        part: {"ms": spread_of(values)._asdict(), "mib": memory.peaks[part]}
        for part, values in times.items()
    }


def _milliseconds(device: torch.device) -> float:
    synchronize(device)
    return 1e3 * time.perf_counter()


def outer_parts(model: nn.Module) -> list[_Part]:
    """A backbone and its stages."""
    stages = enumerate(stages_of(model))
    return [
        (BACKBONE, model, model),
        *((stage_part(index), stage.first, stage.last) for index, stage in stages),
    ]


def attention_parts(model: nn.Module) -> list[_Part]:
    """The attention layers of a backbone."""
    return [
        (attention_part(index), mixer, mixer)
        for index, stage in enumerate(stages_of(model))
        for mixer in stage.mixers
    ]


@contextmanager
def watch(
    parts: Sequence[_Part], begin: Callable[[str], None], end: Callable[[str], None]
) -> Iterator[None]:
    """Call functions before and after parts of a model run."""
    handles = []
    for name, first, last in parts:
        handles += [
            first.register_forward_pre_hook(lambda *_, name=name: begin(name)),
            last.register_forward_hook(lambda *_, name=name: end(name)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Tally:
    """How far a counter goes while each part runs."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.totals: dict[str, Any] = defaultdict(int)

    def begin(self, part: str) -> None:
        self.totals[part] -= self.read()

    def end(self, part: str) -> None:
        self.totals[part] += self.read()


class _Memory:
    """Peaks of nested parts: each part's is the highest above what was held when it began."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # glibc keeps what has been freed, and a later part would take it without being seen.
        on_cpu = device.type == "cpu"
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if on_cpu else None
        self.held: dict[str, float] = {}
        self.peaks: dict[str, float] = defaultdict(float)

    def _mark(self) -> float:
        peak = read_peak(self.device)
        for part, held in self.held.items():
            self.peaks[part] = max(self.peaks[part], peak - held)
        if self.trim is not None:
            self.trim(0)
        return reset_peak(self.device)

    def begin(self, part: str) -> None:
        self.held[part] = self._mark()

    def end(self, part: str) -> None:
        self._mark()
        del self.held[part]


@torch.no_grad()
def count_parts(model: nn.Module, side: int) -> dict[str, int]:
    """Count the multiply-adds of the backbone, its stages and their attention layers."""
    model = copy.deepcopy(model).to("meta")
    with counting_flops() as total:
        flops = _Tally(total)
        with watch([*outer_parts(model), *attention_parts(model)], flops.begin, flops.end):
            model(torch.empty(1, 3, side, side, device="meta"))
    return flops.totals
