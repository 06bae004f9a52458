import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest

from slide_mm.datasets import make_demo_scenes
from slide_mm.engine import ConfigError, inspect_data
from slide_mm.engine.config import load_config
from slide_mm.new_config import write_config
from slide_mm.new_config.annotations import READERS
from slide_mm.new_config.writing import changes_of, render
from tests.new_config import layouts

ROOT = Path(__file__).resolve().parents[2]
DETECTOR, SEGMENTOR = "mask-rcnn_slide-pvtv2-b0", "slide-pvtv2-b0_fpn"
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_demo_scenes(folder, num_training=18, num_validation=6, image_size=64)
    return folder


def make(kind, scenes, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    {**layouts.DETECTION, **layouts.SEGMENTATION}[kind](scenes, root)
    return root


def write(base, root, **options):
    options = {"image_size": 64, "epochs": 1, **options}
    out = root.parent / "mine.py"
    lines = write_config(base, root, out, ROOT / "configs", **options)
    return load_config(out), lines


@pytest.mark.parametrize("kind", layouts.DETECTION)
def test_every_object_of_a_folder_is_trained_on_or_validated(kind, scenes, tmp_path):
    root = make(kind, scenes, tmp_path)
    cfg, lines = write(DETECTOR, root)
    assert (
        lines[0] == f"{kind if kind in READERS else 'COCO'}: 10 classes: {', '.join('0123456789')}"
    )
    reports = list(inspect_data(cfg.filename, num_workers=1))
    assert [line for report in reports for line in report.problems] == []
    contents = [
        json.loads(Path(root, loader.dataset.ann_file).read_text())
        for loader in (cfg.train_dataloader, cfg.val_dataloader)
    ]
    found = [objects_of(content) for content in contents]
    sources = [objects_of(layouts.read(scenes, split)) for split in ("training", "validation")]
    if kind == "one file":
        assert sorted(found[0] + found[1]) == sorted(sources[0])
    elif kind == "LabelMe":
        assert sorted(found[0] + found[1]) == sorted(sources[0] + sources[1])
    else:
        assert list(map(sorted, found)) == list(map(sorted, sources))
    masks = cfg.model.type == "MaskRCNN"
    assert masks == (kind not in ("YOLO", "Pascal VOC"))
    assert bool(cfg.model.roi_head.get("mask_head")) == masks
    assert cfg.model.roi_head.bbox_head.num_classes == 10


def objects_of(content):
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [
        (names[x["category_id"]], *(round(value) for value in x["bbox"]))
        for x in content["annotations"]
    ]


@pytest.mark.parametrize("kind", layouts.SEGMENTATION)
def test_every_label_map_is_used(kind, scenes, tmp_path):
    root = make(kind, scenes, tmp_path)
    cfg, _ = write(SEGMENTOR, root)
    reports = list(inspect_data(cfg.filename, num_workers=1))
    assert [line for report in reports for line in report.problems] == []
    numbers = [len(report.samples) for report in reports[:2]]
    assert numbers == ([18, 6] if kind == "label maps" else [14, 4])
    classes = reports[0].dataset.metainfo["classes"]
    assert classes[:2] == (("background", "0") if kind == "label maps" else ("class 0", "class 1"))
    assert cfg.model.decode_head.num_classes == len(classes) == 11
    assert not any("reduce_zero_label" in step for step in cfg.train_dataloader.dataset.pipeline)


def test_schedule_and_learning_rate_fit(scenes, tmp_path):
    root = make("COCO", scenes, tmp_path)
    cfg, lines = write(DETECTOR, root, epochs=24, num_gpus=2, batch_size=4)
    assert lines[-1].startswith("24 epochs, 72 iterations of 4 images on each of 2 GPUs")
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * 8 / 16)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, steps.milestones, steps.end) == (8, [16, 22], 24)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (24, 2)
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.checkpoint.save_best) == (
        2,
        "auto",
    )
    cfg, _ = write(DETECTOR, root, epochs=None)
    assert cfg.train_cfg.max_epochs == 100


def test_weights_are_tried(scenes, tmp_path):
    root = make("COCO", scenes, tmp_path)
    with pytest.raises(ValueError, match=r"missing\.pth"):
        write(DETECTOR, root, weights="missing.pth")
    assert not (tmp_path / "mine.py").exists()


def test_again_gives_the_same(scenes, tmp_path):
    """What was written beside the data is no other annotation file to it."""
    root = make("LabelMe", scenes, tmp_path)
    cfg, lines = write(DETECTOR, root)
    files = {path: path.read_bytes() for path in root.glob("coco_*.json")}
    assert len(files) == 2
    again, same_lines = write(DETECTOR, root)
    assert (again.pretty_text, same_lines) == (cfg.pretty_text, lines)
    assert {path: path.read_bytes() for path in files} == files
    write(DETECTOR, root, seed=1)
    assert {path: path.read_bytes() for path in files} != files


def empty(root):
    """Nothing at all."""


def without_annotations(root):
    (root / "a.jpg").write_bytes(b"")


def two_candidates(root):
    for name in ("first", "second"):
        (root / f"{name}.json").write_text('{"images": [], "categories": [], "annotations": []}')


def without_images(root):
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 1, 1]} for i in (1, 2)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in (1, 2)]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    (root / "train.json").write_text(json.dumps(content))


def one_object(root):
    without_images(root)
    content = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(content | {"annotations": []}))


@pytest.mark.parametrize(
    ("prepare", "base", "message"),
    [
        (empty, DETECTOR, "has no annotations: looked for .json files"),
        (without_annotations, DETECTOR, "has no annotations: looked for .json files"),
        (two_candidates, DETECTOR, "has 2 annotation files for all images, such as first.json and"),
        (without_images, DETECTOR, "names [12].jpg, which is not in"),
        (one_object, DETECTOR, "0 images have objects: give at least 2"),
        (empty, SEGMENTOR, "has no images with label maps: .* found no images"),
        (empty, "mask-rcnn_nobody", "there is no config mask-rcnn_nobody"),
    ],
)
def test_wrong_folders_are_told_in_a_line(prepare, base, message, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    prepare(root)
    with pytest.raises(ConfigError, match=message) as error:
        write(base, root)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "0 0.5 0.5\n", "a.txt has the line '0 0.5 0.5': give a class's number"),
        ("a.txt", "x 0.5 0.5 0.1 0.1\n", "a.txt has the line 'x"),
        ("a.xml", "<annotation>", "a.xml is no annotation of Pascal VOC"),
        ("b.xml", "<annotation></annotation>", "b.xml is of the image b, which is nowhere in"),
        ("c.json", '{"shapes": [], "imagePath": "c.jpg"}', "c.jpg, which is not beside it"),
        (
            "a.json",
            '{"shapes": [{"label": "x", "points": [[1, 2]]}]}',
            "without a label or corners",
        ),
    ],
)
def test_broken_annotations_are_named(name, content, message, scenes, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.jpg").write_bytes(next((scenes / "images/training").iterdir()).read_bytes())
    (root / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        write(DETECTOR, root)


def test_changes_merge_to_the_other_config(tmp_path):
    before = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": "x", "f": (1,)}
    after = {"a": {"b": 1, "c": [1, {"d": 3}]}, "e": "y", "f": (1,), "g": None}
    assert changes_of(before, after) == {"a": {"c": [1, {"d": 3}]}, "e": "y", "g": None}
    value = {"long": ["x" * 40] * 9, "tuple": ("a",), "number": 1e-5, "quote": "a\"b'c"}
    code = render({**value, "again": value}, used=8)
    assert eval(code) == {**value, "again": value}
    assert max(map(len, code.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*layouts.DETECTION, *layouts.SEGMENTATION])
def test_commands_run_without_an_edit(kind, scenes, tmp_path, monkeypatch, capsys):
    root = make(kind, scenes, tmp_path)
    monkeypatch.chdir(tmp_path)
    base = DETECTOR if kind in layouts.DETECTION else SEGMENTOR

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        assert "error:" not in capsys.readouterr().err

    options = ("--image-size", "64", "--epochs", "1", "--batch-size", "6")
    run("misc/new_config.py", base, "--data", str(root), "--out", "mine.py", *options)
    run("train.py", "mine.py", "--work-dir", "out")
    (checkpoint,) = Path("out").glob("best*.pth")
    run("test.py", "mine.py", str(checkpoint))
    image = next(path for path in root.rglob("*.jpg"))
    run("infer.py", "mine.py", str(checkpoint), str(image), "--out", "drawn")
    assert list(Path("drawn").rglob("*.*"))
