import shutil

import pytest

from slide_mm.engine import train


@pytest.fixture(scope="module")
def broken(scenes, write_config, tmp_path_factory):
    """Config of a detector, and an image of its training split that is cut off."""
    root = shutil.copytree(scenes, tmp_path_factory.mktemp("data") / "broken")
    image = min((root / "images/training").iterdir())
    image.write_bytes(image.read_bytes()[:100])
    loader = f"train_dataloader = dict(dataset=dict(data_root={str(root)!r}))"
    return write_config("mask_rcnn", loader), image


@pytest.fixture
def check(run, capsys):
    """check(config, ...) -> exit code, output, errors."""

    def check(*args):
        with pytest.raises(SystemExit) as end:
            run("misc/check_data.py", *args)
        return end.value.code, *capsys.readouterr()

    return check


def test_sound_data(write_config, check):
    code, out, _ = check(write_config("semantic_fpn"), "--workers", "1")
    assert "train_dataloader.dataset (BaseSegDataset)\n  4 images\n" in out
    assert out.endswith("ok\n")
    assert code == 0


def test_broken_image_is_named(broken, check):
    config, image = broken
    code, out, _ = check(config, "--workers", "2")
    assert f"problem: {image} cannot be read" in out
    assert out.endswith("problems: 1; docs/data.md tells how the data is laid out\n")
    assert code == 1


def test_training_passes_over_a_broken_image(broken, tmp_path):
    config, image = broken
    train(config, work_dir=str(tmp_path))
    (log,) = tmp_path.glob("*/*.log")
    assert f"passing over {image}: LoadImageFromFile failed" in log.read_text()
    assert (tmp_path / "epoch_3.pth").is_file()


def test_heads_at_odds_with_the_data_are_named(write_config, check):
    head = "model = dict(decode_head=dict(num_classes=5))"
    code, out, _ = check(write_config("semantic_fpn", head), "--workers", "1")
    assert "problem: model.decode_head.num_classes is 5, and the dataset has 11 classes" in out
    assert code == 1


def test_config_that_does_not_exist(check):
    code, _, err = check("no-such-config.py")
    assert err == "error: config no-such-config.py does not exist: check the path\n"
    assert code == 1
