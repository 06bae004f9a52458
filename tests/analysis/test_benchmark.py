import time

import pytest
import torch

from slide_mm.analysis.benchmark import Rates, fit_exponent, measure_memory
from slide_mm.engine.timing import measure_times

CPU = torch.device("cpu")


def build_allocations(mib):
    """Forward takes so many MiB, forward and backward twice as many."""
    size = mib << 18
    torch.ones(1 << 18)  # Threads and code take memory of their own, once.
    return lambda: torch.ones(size), lambda: (torch.ones(size), torch.ones(size))


def test_memory_of_a_known_allocation():
    memory = measure_memory(build_allocations, 64, device=CPU)
    assert memory.forward == pytest.approx(64, abs=3)
    assert memory.both == pytest.approx(128, abs=3)


def test_contenders_take_turns_and_slow_ones_run_less_often(capsys):
    calls = []
    runs = {"fast": lambda: calls.append("fast"), "other": lambda: calls.append("other")}
    times = measure_times(runs, 4, CPU, "label")
    assert calls == ["fast", "other"] * 5
    assert times["fast"].rounds == 4
    assert "label: round 4 of 4" in capsys.readouterr().err

    runs["slow"] = _slow_first(calls)
    times = measure_times(runs, 5, CPU, "label")
    assert (times["fast"].rounds, times["slow"].rounds) == (5, 3)


def _slow_first(calls):
    def run():
        if "slow" not in calls:
            time.sleep(1.1)
        calls.append("slow")

    return run


def test_times_are_ordered_milliseconds():
    times = measure_times({"nap": lambda: time.sleep(0.01)}, 5, CPU, "nap")["nap"]
    assert 10 <= times.low <= times.median <= times.high < 1000


def test_exponent_of_a_power_law():
    sizes = [2.0**i for i in range(5)]
    assert fit_exponent(sizes, [3 * size**1.25 for size in sizes]) == pytest.approx(1.25)


def test_floor_is_the_slower_of_arithmetic_and_traffic():
    rates = Rates(arithmetic=1e9, bandwidth=1e8)
    assert rates.floor(2e6, 1) == pytest.approx(2)
    assert rates.floor(1, 3e5) == pytest.approx(3)
