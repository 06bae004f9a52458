import pytest
import torch

from slide_mm.analysis.backbone_benchmark import (
    FAMILIES,
    build_runs,
    format_backbones,
    plot_backbones,
)


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in FAMILIES.items() for name in names]
)
def test_every_backbone_runs_forward_and_backward(family, name):
    for run in build_runs(family, name, (1, 64, 96), torch.device("cpu")):
        run()


def test_report_gives_ratios_to_the_first(tmp_path):
    def measured(median, mib):
        time = {"median": median, "low": median, "high": median, "rounds": 3}
        return {"ms": {"forward": time, "both": time}, "mib": {"forward": mib, "both": 2 * mib}}

    swin = {"theirs": measured(80, 7), "ours": measured(60, 5)}
    report = {"batch": 1, "results": {"64x96": {"swin": swin}}}
    lines = [line.split("|") for line in format_backbones(report).splitlines()]
    ours = next(line for line in lines if line[1:2] == [" ours   "])
    assert [cell.strip() for cell in ours[2:8]] == [
        *("60 (60 to 60, n = 3)", "0.75", "5"),
        *("60 (60 to 60, n = 3)", "0.75", "10"),
    ]
    plot_backbones(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
