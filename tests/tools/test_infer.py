import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer
from PIL import Image
from pycocotools import mask as mask_utils

from slide_mm.engine.config import load_config
from slide_mm.engine.inference import draw_mask, find_images, infer
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError

TOOL = Path(__file__).resolve().parents[2] / "tools/infer.py"


@pytest.fixture
def run(monkeypatch):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, args)])
        runpy.run_path(str(TOOL), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def models(write_config, tmp_path_factory):
    """Config and checkpoint of an untrained detector, sure of everything, and of a segmentor."""
    folder = tmp_path_factory.mktemp("weights")
    configs = {name: write_config(name) for name in ("mask_rcnn", "semantic_fpn")}
    return {name: (x, save_model(x, folder / f"{name}.pth")) for name, x in configs.items()}


def save_model(config, path):
    torch.manual_seed(0)
    weights = check_model(load_config(config), pretrained=False).state_dict()
    if "roi_head.bbox_head.fc_cls.bias" in weights:
        weights["roi_head.bbox_head.fc_cls.bias"][:3] += 3
    torch.save(weights, path)
    return str(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, size in {"tiny.png": (8, 8), "small.png": (50, 70), "large.bmp": (300, 410)}.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut_off.png").write_bytes((folder / "small.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("no image either")
    return folder


@pytest.mark.parametrize("name", ["mask_rcnn", "semantic_fpn"])
def test_folder(run, models, images, tmp_path, capsys, name):
    run(*models[name], images, "--out", tmp_path, "--score-thr", 0.2)
    output = capsys.readouterr()
    assert "images passed over: 2 (broken.jpg, cut_off.png)" in output.out
    assert f"passed over {images / 'cut_off.png'}: image file is truncated" in output.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["classes"][:2] == {"mask_rcnn": ["0", "1"]}.get(name, ["background", "0"])
    assert [item["file"] for item in results["unreadable"]] == ["broken.jpg", "cut_off.png"]
    assert [item["file"] for item in results["images"]] == ["large.bmp", "small.png", "tiny.png"]
    for record in results["images"]:
        size = record["height"], record["width"]
        original = np.array(Image.open(images / record["file"]))
        picture = np.array(Image.open(tmp_path / record["picture"]))
        assert picture.shape == original.shape == (*size, 3)
        if name == "semantic_fpn":
            assert not np.array_equal(picture, original)
            labels = np.array(Image.open(tmp_path / record["labels"]))
            shares = [(labels == label).mean() for label in range(len(results["classes"]))]
            named = [record["shares"].get(label, 0) for label in results["classes"]]
            assert named == pytest.approx(shares, abs=1e-5)
    if name == "mask_rcnn":
        large = results["images"][0]
        assert len(large["instances"]) > 100
        for instance in large["instances"]:
            assert instance["class"] == results["classes"][instance["label"]]
            assert instance["score"] >= 0.2
            left, top, right, bottom = instance["bbox"]
            assert 0 <= left <= right <= 410
            assert 0 <= top <= bottom <= 300
            assert instance["mask"]["size"] == [300, 410]
            mask_left, mask_top, width, height = mask_utils.toBbox(instance["mask"])
            if width * height:
                assert mask_left >= left - 2
                assert mask_top >= top - 2
                assert mask_left + width <= right + 2
                assert mask_top + height <= bottom + 2


def test_small_image_gives_what_the_detection_inferencer_gives(run, models, images, tmp_path):
    image = str(images / "small.png")
    run(*models["mask_rcnn"], image, "--out", tmp_path, "--score-thr", 0)
    (record,) = json.loads((tmp_path / "results.json").read_text())["images"]
    inferencer = DetInferencer(*models["mask_rcnn"], device="cpu", show_progress=False)
    (sample,) = inferencer(image, return_datasamples=True)["predictions"]
    expected = sample.pred_instances
    assert len(record["instances"]) == len(expected) > 0
    for index, instance in enumerate(record["instances"]):
        assert instance["label"] == expected.labels[index]
        assert instance["score"] == pytest.approx(expected.scores[index].item(), abs=1e-4)
        assert instance["bbox"] == pytest.approx(expected.bboxes[index].tolist(), abs=0.01)
        assert (mask_utils.decode(instance["mask"]) == expected.masks[index].numpy()).all()


def test_small_image_gives_what_the_segmentation_inferencer_gives(run, models, images, tmp_path):
    image = str(images / "small.png")
    run(*models["semantic_fpn"], image, "--out", tmp_path)
    inferencer = MMSegInferencer(*models["semantic_fpn"], device="cpu", show_progress=False)
    labels = np.array(Image.open(tmp_path / "labels/small.png.png"))
    assert (labels == inferencer(image)["predictions"]).all()


def test_detector_without_masks_and_test_dataset_in_a_wrapper_without_colors(
    write_config, images, tmp_path
):
    config = write_config(
        "mask_rcnn",
        "model = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))\n"
        "test_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=1, "
        "dataset=dict(_base_.val_dataloader.dataset, "
        "metainfo=dict(classes=_base_.classes, palette=[(0, 0, 0)]))))",
    )
    checkpoint = save_model(config, tmp_path / "weights.pth")
    _, results = infer(config, checkpoint, str(images / "*.bmp"), str(tmp_path / "out"), 0.2)
    (record,) = results["images"]
    assert record["instances"]
    assert record["instances"][0].keys() == {"label", "class", "score", "bbox"}


def test_mask_is_drawn_where_it_is():
    mask = np.random.default_rng(0).random((20, 30)) < 0.7
    mask[:3] = mask[:, 20:] = False
    picture = np.full((*mask.shape, 3), 10, np.uint8)
    draw_mask(picture, mask_utils.encode(np.asfortranarray(mask, np.uint8)), (50, 60, 70), 0.5)
    assert ((picture != 10).all(2) == mask).all()
    drawn, empty = picture.copy(), np.zeros(mask.shape, np.uint8, order="F")
    draw_mask(picture, mask_utils.encode(empty), (50, 60, 70), 0.5)
    assert (picture == drawn).all()


def test_images_of_several_folders_keep_different_names(images, tmp_path):
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").touch()
    assert list(find_images(f"{tmp_path}/**/*.png")) == ["a/x.png", "b/c/x.png"]
    assert list(find_images(f"{tmp_path}/a/x.png")) == ["x.png"]
    assert "notes.txt" not in find_images(str(images))


class TestWrongInputs:
    """Each gives one line on stderr, exit code 1 and no files."""

    @pytest.fixture
    def refused(self, run, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def refused(*args):
            before = sorted(tmp_path.rglob("*"))
            capsys.readouterr()
            with pytest.raises(SystemExit) as exit_info:
                run(*args)
            assert exit_info.value.code == 1
            assert sorted(tmp_path.rglob("*")) == before
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
            return line

        return refused

    def test_paths_and_options(self, refused, models, images):
        config, checkpoint = models["mask_rcnn"]
        image = images / "small.png"
        assert "nowhere.py does not exist" in refused("nowhere.py", checkpoint, image)
        assert "nothing.pth does not exist" in refused(config, "nothing.pth", image)
        assert "no image at nowhere.png" in refused(config, checkpoint, "nowhere.png")
        options = (config, checkpoint, image)
        assert "--score-thr is 30.0" in refused(*options, "--score-thr", 30)
        assert "--device nonsense cannot be used" in refused(*options, "--device", "nonsense")
        assert "tensors fit" in refused(config, models["semantic_fpn"][1], image)

    def test_fewer_names_than_classes(self, models, write_config, images):
        config = write_config(
            "semantic_fpn",
            "test_dataloader = dict(dataset=dict(metainfo="
            "dict(_delete_=True, classes=('a', 'b'), palette=[(0, 0, 0)] * 2)))",
        )
        with pytest.raises(ConfigError, match="knows 11 classes, and its test dataset names 2"):
            infer(config, models["semantic_fpn"][1], str(images))

    def test_no_readable_image(self, models, images, tmp_path):
        with pytest.raises(ConfigError, match="none of its 1 images can be read"):
            infer(*models["semantic_fpn"], str(images / "b*.jpg"), str(tmp_path))


def test_help_has_an_example_that_exists(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    example = capsys.readouterr().out.split("example:")[1].split()
    configs = [word for word in example if word.startswith("configs/")]
    assert configs
    assert all((TOOL.parents[1] / config).is_file() for config in configs)
