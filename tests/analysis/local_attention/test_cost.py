import json
import os
import pickle
import signal

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from slide_mm.analysis.local_attention import cost, measuring
from slide_mm.analysis.local_attention.cost import check_cost
from slide_mm.models import SlidePVTv2

CPU = torch.device("cpu")
SIDES = (64, 128, 256)


def call(function, *arguments):
    return function(*arguments)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error):
    raise error


def test_a_process_killed_for_memory_is_no_crash():
    assert measuring.run_if_it_fits(die) is None


def test_lack_of_memory_is_told_from_mistakes(monkeypatch):
    monkeypatch.setattr(measuring, "run_in_fresh_process", call)
    assert measuring.run_if_it_fits(torch.empty, 1 << 60) is None
    assert measuring.run_if_it_fits(fail, MemoryError()) is None
    assert measuring.run_if_it_fits(int, 3) == 3
    with pytest.raises(RuntimeError, match="shape"):
        measuring.run_if_it_fits(fail, RuntimeError("shape"))


def test_memory_of_nested_parts():
    memory = measuring._Memory(CPU)
    memory.begin("outer")
    kept = torch.ones(64 << 18)
    memory.begin("inner")
    freed = torch.ones(32 << 18)
    del freed
    memory.end("inner")
    memory.begin("empty")
    memory.end("empty")
    memory.end("outer")
    assert kept.sum() > 0
    peaks = {name: pytest.approx(mib, abs=3) for name, mib in memory.peaks.items()}
    assert peaks == {"outer": 96, "inner": 32, "empty": 0}


def test_parts_lie_inside_each_other(backbones, monkeypatch):
    """By a clock that counts the modules that ran: real ones go by what else the machine does."""
    ran = []
    monkeypatch.setattr(measuring, "_milliseconds", lambda device: float(len(ran)))
    hook = register_module_forward_hook(lambda module, *_: ran.append(module))
    try:
        parts = measuring.measure_forward(pickle.dumps(backbones["original"]), 96, CPU)
    finally:
        hook.remove()
    times = {name: part["ms"]["median"] for name, part in parts.items()}
    stages = [times[measuring.stage_part(i)] for i in range(4)]
    assert 0 < sum(stages) < times["backbone"]
    for index, stage in enumerate(stages):
        assert 0 < times[measuring.attention_part(index)] < stage
    assert set(parts) == set(measuring.count_parts(backbones["original"], 96))


def test_operations_of_sliding_stages_are_linear():
    counts = [measuring.count_parts(SlidePVTv2(), side) for side in (64, 128)]
    for counted in counts:
        assert sum(counted[measuring.stage_part(i)] for i in range(4)) == counted["backbone"]
    growth = {part: counts[1][part] / counts[0][part] for part in counts[0]}
    assert growth["stage 1"] == growth["attention of stage 2"] == 4
    assert growth["stage 3"] > 4 < growth["attention of stage 3"]


def test_crossings_of_power_laws():
    sides = (100, 200, 400, 800)

    def ratios(first, exponent):
        return [first * side**exponent for side in sides]

    assert cost.find_crossings(sides, ratios(1 / 300, 1), 0.1) == [pytest.approx(300)]
    assert cost.find_crossings(sides, ratios(700**2, -2), 0.1) == [pytest.approx(700)]
    assert cost.find_crossings(sides, ratios(2, 0.5), 0.1) == []
    assert cost.find_crossings(sides, [0.95, 1.05, 0.95, 1.05], 0.1) == []
    assert cost.find_crossings(sides, [None, 2, None, 0.5], 0.1) == [pytest.approx(400)]


@pytest.fixture
def section(backbones, monkeypatch):
    """Costs of models that take pixels, and pixels squared, and run out of memory at 256."""
    exponents = iter([1, 1, 1, 2, 2, 2])

    def measure(function, pickled, side, device):
        exponent = next(exponents)
        if exponent == 2 and side == 256:
            raise MemoryError
        value = side ** (2 * exponent) / (100**2) ** (exponent - 1)
        time = {"median": value, "low": value, "high": value, "rounds": 1}
        return {
            part: {"ms": time, "mib": 2 * value}
            for part in measuring.count_parts(backbones["sliding"], 64)
        }

    monkeypatch.setattr(measuring, "run_in_fresh_process", measure)
    return check_cost(backbones, SIDES, CPU)


def test_out_of_memory_is_a_point_in_the_report(section):
    numbers = section.numbers
    assert numbers["models"]["original"]["ms"]["backbone"][2] is None
    assert numbers["exponents"]["sliding"]["ms"]["stage 1"] == pytest.approx(1)
    assert numbers["exponents"]["original"]["mib"]["stage 1"] == pytest.approx(2)
    assert numbers["crossings"]["ms"]["backbone"] == [pytest.approx(100)]
    assert section.findings[-1] == "original runs out of memory at 256 x 256"
    assert "sliding is faster above 100 px" in section.findings[0]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    figure = section.pictures[0].figure
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["sliding: 1.00", "original: 2.00", "original: out of memory"]
    assert section.pictures[0].to_png().startswith(b"\x89PNG")
