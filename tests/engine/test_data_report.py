import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from slide_mm.datasets import make_demo_scenes
from slide_mm.engine import ConfigError, inspect_data, load_config
from slide_mm.engine.data_report import check_annotations

DETECTION = """
default_scope = "mmdet"
data = dict(
    type="CocoDataset",
    data_root="{root}/",
    metainfo=dict(classes=tuple("0123456789")),
    ann_file="annotations/instances_validation.json",
    data_prefix=dict(img="images/validation/"),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)],
)
train_dataloader = dict(dataset=dict(type="RepeatDataset", times=2, dataset=data))
test_dataloader = dict(dataset=data)
test_evaluator = dict(type="CocoMetric", ann_file=data["data_root"] + data["ann_file"])
"""
SEGMENTATION = """
default_scope = "mmseg"
train_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{root}/",
        metainfo=dict(classes=("background", *"0123456789")),
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
    )
)
"""
PANOPTIC = """
default_scope = "mmdet"
train_dataloader = dict(
    dataset=dict(
        type="CocoPanopticDataset",
        data_root="{root}/",
        metainfo=dict(classes=("digit",), thing_classes=("digit",), stuff_classes=()),
        ann_file="panoptic.json",
        data_prefix=dict(img="images/validation/", seg="panoptic/"),
        pipeline=[],
    )
)
"""
TRAIN = "train_dataloader.dataset"


@pytest.fixture(scope="module")
def sound_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_demo_scenes(folder, num_training=1, num_validation=4, image_size=64)
    return folder


@pytest.fixture
def scenes(sound_scenes, tmp_path):
    return shutil.copytree(sound_scenes, tmp_path / "scenes")


@pytest.fixture
def write(scenes, tmp_path):
    def write(text):
        config = tmp_path / "config.py"
        config.write_text(text.format(root=scenes))
        return str(config)

    return write


@pytest.fixture
def inspect(write):
    def inspect(text, **options):
        return list(inspect_data(write(text), num_workers=1, cfg_options=options))

    return inspect


@pytest.fixture
def refuse(write):
    """What train.py and test.py say of data, None where nothing is refused."""

    def refuse(text, *splits, **options):
        try:
            check_annotations(load_config(write(text), options), splits or ("train",))
        except ConfigError as error:
            return str(error)
        return None

    return refuse


def list_images(scenes):
    return sorted((scenes / "images/validation").iterdir())


def list_maps(scenes):
    return sorted((scenes / "annotations/validation").iterdir())


def edit_annotations(scenes, change=lambda annotations: None):
    path = scenes / "annotations/instances_validation.json"
    annotations = json.loads(path.read_text())
    change(annotations)
    path.write_text(json.dumps(annotations))
    return annotations


def test_sound_detection_data(inspect, refuse, scenes):
    annotations = edit_annotations(scenes)["annotations"]
    train, test = inspect(DETECTION)
    labels = {x["category_id"] for x in annotations}
    assert train.key == f"{TRAIN}.dataset"
    assert train.facts[0] == "4 images"
    assert train.facts[1].startswith(f"{len(annotations)} annotations of {len(labels)} classes")
    assert test.facts[-1] == f"images as in {TRAIN}.dataset"
    assert not train.problems + test.problems
    assert refuse(DETECTION, "train", "test") is None


def test_sound_segmentation_data(inspect, refuse):
    (report,) = inspect(SEGMENTATION)
    assert report.facts[:2] == ["4 images", "4 label maps, 11 classes"]
    assert not report.problems
    assert refuse(SEGMENTATION) is None


def test_images_broken_in_every_way_are_named(inspect, refuse, scenes):
    absent, empty, cut, small = list_images(scenes)
    absent.unlink()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("RGB", (32, 64)).save(small)
    train, _ = inspect(DETECTION)
    assert train.problems[0] == f"{absent} does not exist"
    assert train.problems[1].startswith(f"{empty} cannot be read: ")
    assert train.problems[2].startswith(f"{cut} cannot be read: image file is truncated")
    assert train.problems[3] == f"{small} is 32 x 64 pixels, and annotated as 64 x 64"
    assert len(train.problems) == 4
    # A training passes over what cannot be read; a test doesn't.
    assert refuse(DETECTION) is None
    assert refuse(DETECTION, "test") == f"test_dataloader.dataset: {absent} does not exist"


def test_sound_images_are_not_called_broken(inspect, scenes, monkeypatch):
    """Names of other alphabets, EXIF orientation, images beyond Pillow's limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    turned, grey, *others = list_images(scenes)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(turned, exif=exif)
    Image.new("L", (64, 64)).save(grey)
    new_names = dict(
        zip(
            [turned, grey, *others], ["a b.jpg", "grå\\ő.jpg", "图像.jpg", "%20#?.jpg"], strict=True
        )
    )
    for path, name in new_names.items():
        path.rename(path.with_name(name))

    def rename(annotations):
        names = {path.name: name for path, name in new_names.items()}
        for image in annotations["images"]:
            if image["file_name"] == turned.name:
                image.update(width=48, height=64)
            image["file_name"] = names[image["file_name"]]
        for annotation in annotations["annotations"]:
            annotation["bbox"] = [2, 2, 20, 20]

    edit_annotations(scenes, rename)
    key = f"{TRAIN}.dataset.pipeline.0"
    assert not inspect(DETECTION)[0].problems
    (problem,) = inspect(DETECTION, **{f"{key}.color_type": "unchanged"})[0].problems
    assert problem.endswith("a b.jpg is 64 x 48 pixels, and annotated as 48 x 64")
    problems = inspect(DETECTION, **{f"{key}.imdecode_backend": "pillow"})[0].problems
    assert len(problems) == 4
    assert all("exceeds limit" in problem for problem in problems)


def test_label_maps_at_odds_are_named(inspect, scenes):
    broken, small, coloured, beyond = list_maps(scenes)
    broken.write_bytes(b"PNG")
    Image.new("L", (32, 64)).save(small)
    Image.new("RGB", (64, 64)).save(coloured)
    Image.new("L", (64, 64), 11).save(beyond)
    problems = inspect(SEGMENTATION)[0].problems
    assert problems[0].startswith(f"{broken} cannot be read: ")
    assert problems[1:4] == [
        f"{small} is 32 x 64 pixels, and its image 64 x 64",
        f"{coloured} has 3 channels: label maps have one",
        f"{beyond} has the label 11, and the config 11 classes",
    ]


def test_palettes_and_maps_of_16_bits_are_read_as_the_pipeline_does(inspect, scenes):
    palette, deep, wide, _ = list_maps(scenes)
    Image.open(palette).convert("L").convert("P").save(palette)
    labels = np.asarray(Image.open(deep).convert("L")).astype(np.uint16)
    Image.fromarray(np.where(labels == 0, 65535, labels).astype(np.uint16)).save(deep)
    assert not inspect(SEGMENTATION)[0].problems
    Image.fromarray(labels + 300).save(wide)
    (problem,) = inspect(SEGMENTATION)[0].problems
    assert problem.startswith(f"{wide} has the value ")
    assert problem.endswith(", of which 8 bits are read")
    options = {f"{TRAIN}.pipeline.1.imdecode_backend": "cv2"}
    problems = inspect(SEGMENTATION, **options)[0].problems
    hint = "(imdecode_backend='pillow' reads the numbers of a palette)"
    assert f"{palette} has 3 channels: label maps have one {hint}" in problems


def test_panoptic_images_hold_their_segments(inspect, scenes):
    images, annotations = [], []
    (scenes / "panoptic").mkdir()
    for index, path in enumerate(list_images(scenes)):
        name = path.name
        images.append({"id": index, "file_name": name, "width": 64, "height": 64})
        color = np.zeros((64, 64, 3), np.uint8)
        color[8:24, 8:24] = (1, 2, 1)  # 1 + 2 x 256 + 65536 is the number of its segment.
        Image.fromarray(color).save((scenes / "panoptic" / name).with_suffix(".png"))
        segment = {"id": 66049 - (index == 2), "category_id": 1, "area": 256, "iscrowd": 0}
        info = [segment | {"bbox": [8, 8, 16, 16]}]
        annotations.append({"image_id": index, "file_name": name, "segments_info": info})
    categories = [{"id": 1, "name": "digit", "isthing": 1}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (scenes / "panoptic.json").write_text(json.dumps(coco))
    (problem,) = inspect(PANOPTIC)[0].problems
    assert problem.endswith("0002.png lacks 1 of its segments, for example 66048")


def test_masks_of_0_and_255_hold_nothing_to_learn(inspect, scenes):
    for path in list_maps(scenes):
        labels = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    (problem,) = inspect(SEGMENTATION)[0].problems
    assert problem.startswith("the label maps show background alone, and ")


def test_suffixes_that_match_no_file(inspect, refuse, scenes):
    options = {f"{TRAIN}.img_suffix": ".bmp"}
    line = f"it lists no images: img_suffix is '.bmp', and {scenes}/images/validation has files in"
    assert inspect(SEGMENTATION, **options)[0].problems == [f"{line} .jpg"]
    assert refuse(SEGMENTATION, **options) == f"{TRAIN}: {line} .jpg"
    options = {f"{TRAIN}.seg_map_suffix": "_mask.png"}
    assert "4 of 8 files do not exist: " in refuse(SEGMENTATION, **options)
    assert "seg_map_suffix is '_mask.png'" in refuse(SEGMENTATION, **options)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_are_no_files(make, refuse, scenes):
    """A training would wait for a pipe for ever."""
    path = list_images(scenes)[1]
    path.unlink()
    make(path)
    assert f"{path} is a folder, a pipe or a device" in refuse(DETECTION)


def test_images_without_annotations_are_counted_as_unused(inspect, scenes):
    def clear(annotations):
        first = annotations["images"][0]["id"]
        annotations["annotations"] = [
            x for x in annotations["annotations"] if x["image_id"] != first
        ]

    edit_annotations(scenes, clear)
    fact = inspect(DETECTION)[0].facts[0]
    unused = "1 without an object of the classes"
    assert fact == f"4 images, of which 3 are used; not used: {unused}"


def test_damage_of_each_level(inspect, refuse, scenes):
    """A few objects lost are told; what ends a training or leaves nothing to learn is refused."""

    def shrink(annotations, number=None):
        for annotation in annotations["annotations"][:number]:
            annotation["area"] = 0

    edit_annotations(scenes, lambda annotations: shrink(annotations, 2))
    assert inspect(DETECTION)[0].problems[0].startswith("2 of ")
    assert refuse(DETECTION) is None
    edit_annotations(scenes, shrink)
    assert "no annotation that is used" in refuse(DETECTION)
    edit_annotations(scenes, lambda annotations: annotations["annotations"][0].pop("area"))
    assert "have no 'area'" in refuse(DETECTION)
    path = scenes / "annotations/instances_validation.json"
    path.write_text(path.read_text()[:100])
    (problem,) = inspect(DETECTION)[0].problems
    assert problem.startswith("its annotations cannot be read: JSONDecodeError")
    assert refuse(DETECTION).endswith(problem)


def test_masks_matter_where_the_pipeline_loads_them(refuse, scenes):
    edit_annotations(scenes, lambda x: x["annotations"][0].update(segmentation=[]))
    assert refuse(DETECTION) is None
    masks = {f"{TRAIN}.dataset.pipeline.1.with_mask": True}
    assert "1 of " in refuse(DETECTION, **masks)
    assert "have no segmentation" in refuse(DETECTION, **masks)


def test_metric_with_other_annotations(inspect, refuse, scenes, monkeypatch):
    problems = inspect(DETECTION, **{"test_evaluator.ann_file": "elsewhere.json"})[1].problems
    assert "elsewhere.json, which the metric scores, cannot be read" in problems[0]
    assert problems[1].startswith("test_evaluator.ann_file is elsewhere.json, and the dataset's ")
    # The same file by another way.
    monkeypatch.chdir(scenes)
    same = {"test_evaluator.ann_file": "annotations/../annotations/instances_validation.json"}
    assert not inspect(DETECTION, **same)[1].problems
    (problem,) = inspect(DETECTION, **{"test_dataloader.dataset.indices": 3})[1].problems
    assert "differ in 1 images: those that the dataset lacks count as missed" in problem


def test_missing_data_does_not_hide_the_other_splits(inspect, scenes):
    options = {f"{TRAIN}.dataset.data_root": "data/nowhere/"}
    train, test = inspect(DETECTION, **options)
    (problem,) = train.problems
    assert problem.startswith(f"{TRAIN}.dataset.data_root is data/nowhere/, which")
    assert "docs/data.md" in problem
    assert test.facts[0] == "4 images"
    # Annotations are checked where the images are missing.
    shutil.rmtree(scenes / "images")
    train, _ = inspect(DETECTION)
    (problem,) = train.problems
    assert "data_prefix.img is" in problem
    assert train.facts[0] == "4 images"


def test_pipeline_at_odds_with_its_dataset(inspect):
    options = {f"{TRAIN}.pipeline.1.reduce_zero_label": True}
    assert (
        inspect(SEGMENTATION, **options)[-1]
        .problems[0]
        .startswith(
            f"{TRAIN}: reduce_zero_label is False in the dataset and True in its pipeline's"
        )
    )


def test_config_without_data(inspect):
    with pytest.raises(ConfigError, match="has no dataloader"):
        inspect("default_scope = 'mmdet'  # {root}")
