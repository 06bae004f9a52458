import shutil

import pytest


@pytest.fixture(scope="module")
def broken(scenes, write_config, tmp_path_factory):
    """Config of a detector, and an image of its training split that is cut off."""
    root = shutil.copytree(scenes, tmp_path_factory.mktemp("data") / "broken")
    image = min((root / "images/training").iterdir())
    image.write_bytes(image.read_bytes()[:100])
    loader = f"train_dataloader = dict(dataset=dict(data_root={str(root)!r}))"
    return write_config("mask_rcnn", loader), image


def test_sound_data(write_config, run_tool):
    process = run_tool("misc/check_data.py", write_config("semantic_fpn"), "--workers", "1")
    assert process.returncode == 0, process.stderr[-3000:]
    assert "train_dataloader.dataset (BaseSegDataset)\n  4 images\n" in process.stdout
    assert process.stdout.endswith("ok\n")


def test_broken_image_is_named(broken, run_tool):
    config, image = broken
    process = run_tool("misc/check_data.py", config, "--workers", "2")
    assert process.returncode == 1, process.stderr[-3000:]
    assert f"problem: {image} cannot be read" in process.stdout
    assert process.stdout.endswith("problems: 1; docs/data.md tells how the data is laid out\n")


def test_training_passes_over_a_broken_image(broken, run_tool, tmp_path):
    config, image = broken
    process = run_tool("train.py", config, "--work-dir", str(tmp_path))
    assert process.returncode == 0, process.stderr[-3000:]
    (log,) = tmp_path.glob("*/*.log")
    assert f"passing over {image}: LoadImageFromFile failed" in log.read_text()
    assert (tmp_path / "epoch_3.pth").is_file()


def test_config_that_does_not_exist(run_tool):
    process = run_tool("misc/check_data.py", "no-such-config.py")
    assert process.returncode == 1
    assert process.stderr == "error: config no-such-config.py does not exist: check the path\n"
