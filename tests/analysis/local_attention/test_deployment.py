import pickle

import torch

from slide_mm.analysis.local_attention import deployment, measuring
from slide_mm.analysis.local_attention.deployment import check_deployment

CPU = torch.device("cpu")


def test_forms_agree(backbones):
    compared = deployment.compare_forms(pickle.dumps(backbones["sliding"]), 64, CPU)
    assert compared["difference"] < 1e-5
    assert compared["training_ms"] > 0 < compared["deployed_ms"]


def test_a_form_that_differs_is_seen(backbones, monkeypatch):
    monkeypatch.setattr(deployment, "reparameterize_model", lambda _: backbones["original"])
    compared = deployment.compare_forms(pickle.dumps(backbones["sliding"]), 64, CPU)
    assert compared["difference"] > 1e-2


def test_sizes_that_do_not_fit_are_said(backbones, monkeypatch):
    def compare(function, pickled, side, device):
        if side == 96:
            raise MemoryError
        return {"difference": 1e-7, "training_ms": 4.0, "deployed_ms": 3.0}

    monkeypatch.setattr(measuring, "run_in_fresh_process", compare)
    section = check_deployment(backbones["sliding"], [64, 96], CPU)
    assert section.lines[0][-1] == "0.750"
    assert section.lines[1][1:] == ["out of memory"] * 4
    assert section.findings == ["largest relative difference: 1.0e-07"]
    assert section.pictures[0].to_png().startswith(b"\x89PNG")
