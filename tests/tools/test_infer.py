import errno
import json
import os
import resource
import signal
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer
from mmseg.registry import TRANSFORMS as MMSEG_TRANSFORMS
from PIL import Image
from pycocotools import mask as mask_utils

from slide_mm.engine.config import load_config
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.inference import infer, tasks
from slide_mm.inference.images import ImageLoader, find_images, to_picture
from slide_mm.inference.tasks import draw_mask


@pytest.fixture
def run(run):
    return partial(run, "infer.py")


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
    Image.fromarray(rng.integers(0, 255, (1, 1), dtype=np.uint8)).save(folder / "dot.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut_off.png").write_bytes((folder / "small.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("no image either")
    return folder


@pytest.mark.parametrize("name", ["mask_rcnn", "semantic_fpn"])
def test_folder(run, models, images, tmp_path, capsys, name):
    run(*models[name], images, "--out", tmp_path, "--score-thr", 0.2)
    output = capsys.readouterr()
    assert "(broken.jpg, cut_off.png" in output.out
    assert f"passed over {images / 'cut_off.png'}: image file is truncated" in output.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["classes"][:2] == {"mask_rcnn": ["0", "1"]}.get(name, ["background", "0"])
    unreadable, predicted = (
        [item["file"] for item in results[key]] for key in ("unreadable", "images")
    )
    # A model may fail on an image of one pixel, and the others get their pictures.
    assert set(unreadable) - {"dot.png"} == {"broken.jpg", "cut_off.png"}
    assert set(predicted) - {"dot.png"} == {"large.bmp", "small.png", "tiny.png"}
    assert ("dot.png" in unreadable) != ("dot.png" in predicted)
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {Path(record["picture"]).name for record in results["images"]}
    for record in results["images"]:
        size = record["height"], record["width"]
        original = np.array(Image.open(images / record["file"]).convert("RGB"))
        picture = np.array(Image.open(tmp_path / record["picture"]))
        assert picture.shape == original.shape == (*size, 3)
        if name == "semantic_fpn":
            assert not np.array_equal(picture, original)
            labels = np.array(Image.open(tmp_path / record["labels"]))
            shares = [(labels == label).mean() for label in range(len(results["classes"]))]
            named = [record["shares"].get(label, 0) for label in results["classes"]]
            assert named == pytest.approx(shares, abs=1e-5)
    if name == "mask_rcnn":
        (large,) = (x for x in results["images"] if x["file"] == "large.bmp")
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
    inferencer = MMSegInferencer(*models["semantic_fpn"], device="cpu")
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


CHANNELS = """
channels = dict(mean={mean}, std={mean}, bgr_to_rgb=False)
model = dict(backbone=dict(in_channels={channels}), data_preprocessor=channels)
load = dict(type="LoadImageFromFile", color_type={color_type!r}, imdecode_backend={backend!r})
steps = [load, *_base_.val_dataloader.dataset.pipeline[1:]]
test_dataloader = dict(dataset=dict(pipeline=steps))
"""


@pytest.mark.parametrize("name", ["mask_rcnn", "semantic_fpn"])
@pytest.mark.parametrize(("channels", "color_type"), [(1, "grayscale"), (4, "unchanged")])
def test_images_have_the_channels_that_the_pipeline_loads(
    name, channels, color_type, write_config, tmp_path, monkeypatch
):
    """Whole and by tiles."""
    monkeypatch.setattr(tasks, "_MAX_TILES_WHOLE", 1)
    mean = [50.0] if channels == 1 else None  # MMEngine takes one or three numbers.
    options = dict(channels=channels, color_type=color_type, backend="cv2", mean=mean)
    config = write_config(name, CHANNELS.format(**options))
    checkpoint = save_model(config, tmp_path / "weights.pth")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 150, 4), dtype=np.uint8)
    for side, suffix in ((30, "small.png"), (150, "large.png")):
        (tmp_path / "images").mkdir(exist_ok=True)
        image = Image.fromarray(pixels[:, :side])
        image.convert("L" if channels == 1 else "RGBA").save(tmp_path / "images" / suffix)
    seen = []
    for method in ("detect_by_tiles", "segment_by_tiles"):
        whole = getattr(tasks, method)
        monkeypatch.setattr(
            tasks,
            method,
            lambda model, image, *args, whole=whole: whole(
                lambda part: seen.append(part) or model(part), image, *args
            ),
        )
    out, results = infer(config, checkpoint, str(tmp_path / "images"), str(tmp_path / "out"))
    assert len(results["images"]) == 2
    assert {part.shape[2:] for part in seen} == {(4,) if channels == 4 else ()}
    assert len(seen) > 2
    for record in results["images"]:
        picture = np.array(Image.open(out / record["picture"]))
        assert picture.shape == (record["height"], record["width"], 3)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, bool])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,), (7,)])
def test_anything_can_be_drawn_on(kind, channels):
    values = np.random.default_rng(0).integers(-300, 3000, (5, 6, *channels))
    picture = to_picture(values.astype(kind))
    assert picture.shape == (5, 6, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    color = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    assert (to_picture(color) == color).all()


def test_types_may_be_classes(models, images):
    """As in new-style configs."""
    cfg = load_config(models["semantic_fpn"][0])
    load, *others = cfg.test_dataloader.dataset.pipeline
    load.type, others[0].type = mmcv.transforms.LoadImageFromFile, mmcv.transforms.Resize
    others[0].scale = (32, 32)
    image = ImageLoader(cfg)(images / "small.png")
    assert (image == mmcv.imread(images / "small.png")).all()
    (first, second, *_) = cfg.test_dataloader.dataset.pipeline
    assert first == {"type": "LoadImageFromFile"}
    assert MMSEG_TRANSFORMS.build(second)({"img": image})["img"].shape == (32, 32, 3)


def fail(error):
    raise error


ENDS = {
    "stopped by Ctrl-C": (130, lambda: fail(KeyboardInterrupt())),
    "stopped by SIGTERM": (143, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "No space left": (1, lambda: fail(OSError(errno.ENOSPC, "No space left on device"))),
}


@pytest.mark.parametrize("line", ENDS)
@pytest.mark.parametrize("number", [1, 3])
def test_what_ends_the_run_leaves_results_of_the_pictures_that_exist(
    line, number, run, models, images, tmp_path, monkeypatch, capsys
):
    code, end = ENDS[line]
    write, count = tasks._write_image, iter(range(100))

    def write_or_end(path, image):
        if next(count) == number:
            end()
        write(path, image)

    monkeypatch.setattr(tasks, "_write_image", write_or_end)
    with pytest.raises(SystemExit) as exit_info:
        run(*models["semantic_fpn"], images / "[lst]*.*", "--out", tmp_path / "out")
    assert exit_info.value.code == code
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert line in errors[0]
    require_consistent(tmp_path / "out", number // 2)


def require_consistent(out, num_pictures):
    """results.json names all files, and there are no others; nothing at all without a picture."""
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    if num_pictures == 0:
        assert not out.exists()
        return
    records = json.loads((out / "results.json").read_text())["images"]
    assert len(records) == num_pictures
    named = {record[key] for record in records for key in ("picture", "labels")}
    assert files == {"results.json", *named}


def test_results_make_room_for_themselves_on_a_full_disk(models, images, tmp_path, monkeypatch):
    """Here results.json is larger than a file may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run_task = tasks.Task.run
    monkeypatch.setattr(tasks.Task, "run", lambda *args: run_task(*args) | {"note": "x" * 40_000})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        infer(*models["semantic_fpn"], str(images / "[st]*.png"), str(tmp_path / "out"))
        infer(*models["semantic_fpn"], str(images / "*[lty].*"), str(tmp_path / "other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    require_consistent(tmp_path / "out", 2)


def test_an_error_that_is_not_of_an_image_ends_the_run(models, images, tmp_path, monkeypatch):
    for index in range(7):
        (tmp_path / f"{index}.png").write_bytes((images / "small.png").read_bytes())
    calls = []
    monkeypatch.setattr(
        tasks.Segmentation, "segment", lambda *_: calls.append(1) or fail(ValueError("wrong"))
    )
    with pytest.raises(ConfigError, match=r"no image can be predicted: .*ValueError: wrong"):
        infer(*models["semantic_fpn"], str(tmp_path), str(tmp_path / "out"))
    assert len(calls) == 5
    assert not (tmp_path / "out").exists()


class TestWrongInputs:
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
        with pytest.raises(
            ConfigError, match=r"none of its 1 images can be predicted.*failed to load"
        ):
            infer(*models["semantic_fpn"], str(images / "b*.jpg"), str(tmp_path))


def test_dataset_that_cannot_be_built(write_config, models, images, tmp_path):
    text = "test_dataloader = dict(dataset=dict(metainfox=dict()))\n"
    config = write_config("semantic_fpn", text)
    with pytest.raises(ConfigError, match=r"BaseSegDataset.*'metainfox'"):
        infer(config, models["semantic_fpn"][1], str(images), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
