import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from slide_mm.engine.config import load_config
from slide_mm.engine.inference import infer
from slide_mm.engine.preflight import check_model


@pytest.fixture(params=["mask_rcnn", "semantic_fpn"])
def model(request, write_config, tmp_path):
    """Config and checkpoint of an untrained model."""
    config = write_config(request.param)
    checkpoint = tmp_path / "weights.pth"
    torch.save(check_model(load_config(config), pretrained=False).state_dict(), checkpoint)
    return config, str(checkpoint)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"tiny.png": (8, 8), "large.jpg": (300, 410)}.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def test_folder_with_a_broken_a_tiny_and_a_large_image(model, images, tmp_path, capsys):
    out, results = infer(*model, str(images), str(tmp_path / "out"), score_thr=0.05)
    assert results == json.loads((out / "results.json").read_text())
    assert results["unreadable"] == ["broken.jpg"]
    assert "broken.jpg" in capsys.readouterr().out
    records = {record["file"]: record for record in results["images"]}
    assert records.keys() == {"tiny.png", "large.jpg"}
    for name, record in records.items():
        size = record["height"], record["width"]
        with Image.open(out / "pictures" / name) as picture:
            assert picture.size == size[::-1]
        if "labels" in record:
            with Image.open(out / record["labels"]) as labels:
                assert labels.size == size[::-1]
            assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-3)
        for instance in record.get("instances", ()):
            assert instance["class"] in results["classes"]
            assert mask_utils.decode(instance["mask"]).shape == size


@pytest.mark.parametrize(
    ("inputs", "message"),
    [("nowhere.jpg", "nowhere.jpg holds no images"), ("b*.jpg", "none of its 1 images can be")],
)
def test_nothing_to_read_is_one_line(run_tool, model, images, tmp_path, inputs, message):
    finished = run_tool("infer.py", *model, str(images / inputs), "--out", str(tmp_path / "out"))
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
