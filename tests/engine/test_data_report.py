import json
import shutil

import pytest
from PIL import Image

from slide_mm.datasets import make_demo_scenes
from slide_mm.engine import ConfigError, inspect_data

DETECTION = """
default_scope = "mmdet"
data = dict(
    type="CocoDataset",
    data_root="{root}/",
    metainfo=dict(classes=tuple("0123456789")),
    ann_file="annotations/instances_validation.json",
    data_prefix=dict(img="images/validation/"),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=[],
)
train_dataloader = dict(dataset=dict(type="RepeatDataset", times=2, dataset=data))
test_dataloader = dict(dataset=data)
test_evaluator = dict(type="CocoMetric", ann_file=data["data_root"] + data["ann_file"])
"""
SEGMENTATION = """
default_scope = "mmseg"
val_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{root}/",
        metainfo=dict(classes=("background", *"0123456789")),
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[],
    )
)
"""


@pytest.fixture(scope="module")
def sound_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_demo_scenes(folder, num_training=1, num_validation=4, image_size=64)
    return folder


@pytest.fixture
def scenes(sound_scenes, tmp_path):
    return shutil.copytree(sound_scenes, tmp_path / "scenes")


@pytest.fixture
def inspect(scenes, tmp_path):
    def inspect(text, **options):
        config = tmp_path / "config.py"
        config.write_text(text.format(root=scenes))
        return list(inspect_data(str(config), num_workers=1, **options))

    return inspect


def list_images(scenes):
    return sorted((scenes / "images/validation").iterdir())


def edit_annotations(scenes, change):
    path = scenes / "annotations/instances_validation.json"
    annotations = json.loads(path.read_text())
    change(annotations)
    path.write_text(json.dumps(annotations))
    return annotations


def test_sound_detection_data(inspect, scenes):
    annotations = edit_annotations(scenes, lambda annotations: None)["annotations"]
    train, test = inspect(DETECTION)
    labels = {x["category_id"] for x in annotations}
    assert train.key == "train_dataloader.dataset.dataset"
    assert train.facts == [
        "4 images",
        f"{len(annotations)} annotations of {len(labels)} classes",
    ]
    assert test.facts == ["the same as train_dataloader.dataset.dataset"]
    assert not train.problems + test.problems


def test_sound_segmentation_data(inspect):
    (report,) = inspect(SEGMENTATION)
    assert report.facts == ["4 images", "4 label maps, 11 classes"]
    assert not report.problems


def test_images_broken_in_every_way_are_named(inspect, scenes):
    absent, empty, cut, small = list_images(scenes)
    absent.unlink()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("RGB", (32, 64)).save(small)
    problems = inspect(DETECTION)[0].problems
    assert problems[0] == f"{absent} does not exist"
    assert problems[1].startswith(f"{empty} cannot be read: ")
    assert problems[2].startswith(f"{cut} cannot be read: image file is truncated")
    assert problems[3] == f"{small} is 32 x 64 pixels, and annotated as 64 x 64"
    assert len(problems) == 4


def test_label_maps_at_odds_are_named(inspect, scenes):
    broken, small, coloured, beyond = sorted((scenes / "annotations/validation").iterdir())
    broken.write_bytes(b"PNG")
    Image.new("L", (32, 64)).save(small)
    Image.new("RGB", (64, 64)).save(coloured)
    Image.new("L", (64, 64), 11).save(beyond)
    problems = inspect(SEGMENTATION)[0].problems
    assert problems[0].startswith(f"{broken} cannot be read: ")
    assert problems[1:] == [
        f"{small} is 32 x 64 pixels, and its image 64 x 64",
        f"{coloured} has 3 channels: label maps have one",
        f"{beyond} has the label 11, and the config 11 classes",
    ]


def test_images_without_annotations_are_counted_as_unused(inspect, scenes):
    def clear(annotations):
        first = annotations["images"][0]["id"]
        annotations["annotations"] = [
            x for x in annotations["annotations"] if x["image_id"] != first
        ]

    edit_annotations(scenes, clear)
    fact = inspect(DETECTION)[0].facts[0]
    assert fact == "4 images, of which 3 are used (the others have nothing to learn)"


def test_classes_that_the_annotations_lack(inspect, scenes):
    def rename(annotations):
        annotations["categories"][0]["name"] = "zero"

    edit_annotations(scenes, rename)
    (problem,) = inspect(DETECTION)[0].problems
    assert problem.startswith("1 of the config's 10 classes are not in the annotation file")


def test_damaged_annotations(inspect, scenes):
    path = scenes / "annotations/instances_validation.json"
    path.write_text(path.read_text()[:100])
    (problem,) = inspect(DETECTION)[0].problems
    assert problem.startswith("its annotations cannot be read: JSONDecodeError")


def test_metric_with_other_annotations(inspect, tmp_path):
    options = {"test_evaluator.ann_file": "elsewhere.json"}
    (problem,) = inspect(DETECTION, cfg_options=options)[1].problems
    assert problem.startswith("test_evaluator.ann_file is elsewhere.json, and the dataset's ")


def test_missing_data_does_not_hide_the_other_splits(inspect, scenes):
    options = {"train_dataloader.dataset.dataset.data_root": "data/nowhere/"}
    train, test = inspect(DETECTION, cfg_options=options)
    (problem,) = train.problems
    assert problem.startswith("train_dataloader.dataset.dataset.data_root is data/nowhere/, which")
    assert "docs/data.md" in problem
    assert test.facts[0] == "4 images"
    shutil.rmtree(scenes / "images")
    (problem,) = inspect(DETECTION)[0].problems
    assert "data_prefix.img is" in problem


def test_config_without_data(inspect):
    with pytest.raises(ConfigError, match="has no dataloader"):
        inspect("default_scope = 'mmdet'  # {root}")
