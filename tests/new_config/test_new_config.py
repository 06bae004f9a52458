import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from slide_mm.analysis import read_scalars
from slide_mm.datasets import make_demo_scenes
from slide_mm.engine import ConfigError, inspect_data
from slide_mm.engine.config import load_config
from slide_mm.new_config import write_config
from slide_mm.new_config.detection import READERS
from slide_mm.new_config.writing import changes_of, render
from tests.new_config import layouts
from tests.new_config.shapes import make_shapes

ROOT = Path(__file__).resolve().parents[2]
DETECTOR, SEGMENTOR = "mask-rcnn_slide-pvtv2-b0", "slide-pvtv2-b0_fpn"
OTHER_HEADS = (
    "atss_slide-swin-t",
    "deformable-detr_slide-swin-t",
    "dino-4scale_slide-swin-t",
    "mask2former_slide-swin-t_8xb2-lsj-50e_coco",
    "rtmdet_l_slide-swin-t",
)
# Narrow, for tests that train.
NARROW = str(ROOT / "configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py")
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
    assert lines[-2].startswith("24 epochs, 72 iterations of 4 images on each of 2 GPUs")
    assert "from scratch" in lines[-1]
    assert cfg.optim_wrapper.optimizer.lr == 1.41e-4
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


@pytest.mark.parametrize("base", OTHER_HEADS)
def test_configs_of_other_heads_fit_a_folder(base, scenes, tmp_path):
    cfg, _ = write(base, make("COCO", scenes, tmp_path))
    reports = list(inspect_data(cfg.filename, num_workers=1))
    assert [line for report in reports for line in report.problems] == []


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (DETECTOR, r"has no annotations: looked for \.json files"),
        (SEGMENTOR, "has no images with label maps: .* found nothing"),
        ("mask-rcnn_nobody", "there is no config mask-rcnn_nobody"),
        ("/nowhere/mine.py", r"there is no config /nowhere/mine\.py"),
        ("coco_instance", "there is no config coco_instance"),
    ],
)
def test_wrong_folders_and_bases_leave_no_config(base, message, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(ConfigError, match=message):
        write(base, root)
    assert not (tmp_path / "mine.py").exists()


def test_a_config_does_not_inherit_itself(tmp_path):
    base = tmp_path / "mine.py"
    base.write_text("")
    with pytest.raises(ConfigError, match="which the new config inherits"):
        write_config(base, tmp_path, base, ROOT / "configs")


def test_changes_merge_to_the_other_config(tmp_path):
    before = {"a": {"b": 1, "c": [1, {"d": 2}], "h": {"i": 1, "j": 2}}, "e": "x", "f": (1,)}
    after = {"a": {"b": 1, "c": [1, {"d": 3}], "h": {"j": 2}}, "e": "y", "f": (1,), "g": None}
    changes = changes_of(before, after)
    assert changes == {
        "a": {"c": [1, {"d": 3}], "h": {"_delete_": True, "j": 2}},
        "e": "y",
        "g": None,
    }
    merged = Config(before)
    merged.merge_from_dict(changes, allow_list_keys=False)
    assert merged.to_dict() == after
    value = {"long": ["x" * 40] * 9, "tuple": ("a",), "number": 1e-5, "quote": "a\"b'c"}
    code = render({**value, "again": value}, used=8)
    assert eval(code) == {**value, "again": value}
    assert max(map(len, code.splitlines())) <= 100


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a tool in the folder of the test; it must not end with an error."""
    monkeypatch.chdir(tmp_path)

    def run_tool(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        assert "error:" not in capsys.readouterr().err

    return run_tool


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*layouts.DETECTION, *layouts.SEGMENTATION])
def test_commands_run_without_an_edit(kind, scenes, tmp_path, run):
    root = make(kind, scenes, tmp_path)
    base = NARROW if kind in layouts.DETECTION else SEGMENTOR
    options = ("--image-size", "64", "--epochs", "1", "--batch-size", "6")
    run("misc/new_config.py", base, "--data", str(root), "--out", "mine.py", *options)
    run("train.py", "mine.py", "--work-dir", "out")
    (checkpoint,) = Path("out").glob("best*.pth")
    run("test.py", "mine.py", str(checkpoint))
    image = next(path for path in root.rglob("*.jpg"))
    run("infer.py", "mine.py", str(checkpoint), str(image), "--out", "drawn")
    assert list(Path("drawn").rglob("*.*"))


@pytest.mark.slow
def test_three_hundred_images_are_enough(tmp_path, run):
    make_shapes(tmp_path / "data", 300)
    run("misc/new_config.py", NARROW, "--data", "data", "--out", "mine.py")
    run("train.py", "mine.py", "--work-dir", "out")
    assert read_scalars("out")["coco/bbox_mAP_50"][-1][1] >= 0.8
