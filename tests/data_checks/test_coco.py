"""Annotation files damaged at random, beside what MMDetection makes of them."""

import json
from collections import Counter

import numpy as np
import pytest
from mmdet.datasets import (
    CityscapesDataset,
    CocoDataset,
    CocoPanopticDataset,
    Objects365V1Dataset,
)
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.config import ConfigDict

from slide_mm.data_checks.coco_file import read_coco
from slide_mm.data_checks.coco_findings import check_metric_keys, describe_usage
from slide_mm.data_checks.coco_usage import find_usage
from slide_mm.data_checks.findings import Level
from slide_mm.data_checks.reasons import EXPLANATIONS, Reason
from slide_mm.engine.dataset_checks import describe_reading
from tests.data_checks.coco_files import make_coco, write_large_coco

KINDS = (CocoDataset, CocoDataset, CityscapesDataset, Objects365V1Dataset)
NAN, FAR = float("nan"), float("inf")
# What an annotation is changed to, and what is to become of it.
DAMAGES = [
    (Reason.NO_ID, "id", [None]),
    (Reason.NO_IMAGE_ID, "image_id", [None]),
    (Reason.NO_CATEGORY_ID, "category_id", [None]),
    (Reason.UNKNOWN_IMAGE, "image_id", [77, "10", -1, "x"]),
    (Reason.TEXT_FLAG, "iscrowd", ["0", "false", [0]]),
    (Reason.TEXT_FLAG, "ignore", ["0", "no"]),
    (Reason.IGNORED, "ignore", [1, True]),
    (Reason.NO_BOX, "bbox", [None]),
    (Reason.BAD_BOX, "bbox", [["1", "2", "3", "4"], [1, 2, 3], "1 2 3 4", [1, 2, 3, [4]], 5, {}]),
    (Reason.NAN_BOX, "bbox", [[NAN, 2, 9, 9], [2, NAN, 9, 9], [2, 2, NAN, 9], [2, 2, 9, NAN]]),
    (Reason.FLAT_BOX, "bbox", [[5, 5, 0, 9], [5, 5, 9, -3], [0, 0, 0, 0]]),
    (Reason.OUTSIDE, "bbox", [[500, 5, 9, 9], [5, -50, 9, 9], [-20, -20, 9, 9], [FAR, 1, 9, 9]]),
    (Reason.NO_AREA, "area", [None]),
    (Reason.BAD_AREA, "area", ["100", [5], NAN, {}]),
    (Reason.ZERO_AREA, "area", [0, 0.0, -7]),
    (Reason.FRACTIONS, "bbox", [[0.1, 0.2, 0.5, 0.5], [0, 0, 0.99, 0.2]]),
    (Reason.SMALL_BOX, "bbox", [[5, 5, 0.5, 20], [3, 9, 10, 0.999]]),
    (Reason.UNKNOWN_CATEGORY, "category_id", [0, 99, "1"]),
    (Reason.OTHER_CLASS, "category_id", [50]),
    (Reason.INFINITE_BOX, "bbox", [[5, 5, FAR, 9], [0, 0, FAR, FAR]]),
    (Reason.NO_MASK, "segmentation", [None, [], {}, "", 0]),
    (
        Reason.BROKEN_MASK,
        "segmentation",
        [
            *("all", [1, 2, 8, 2, 8, 9], 7, [["a", 2, 8, 2, 8, 9]], [[1, 2, NAN, 2, 8, 9]]),
            *([[1, 2, 1e9, 2, 8, 9]], [[1, 2, 8, 2, 8, None]], {"counts": [4]}, {"size": [4, 4]}),
            {"size": [2**31, 2**31], "counts": [2**62]},
            {"size": [4, 4], "counts": [16]},
            {"size": "image", "counts": "~~~"},
            {"size": "image", "counts": "04"},
            {"size": "image", "counts": [5, 5]},
            {"size": "image", "counts": [10**9]},
        ],
    ),
    (Reason.CROWD, "iscrowd", [1, True]),
    (Reason.SHORT_MASK, "segmentation", [[[1, 2, 8, 2]], [[1, 2, 8, 2, 8, 9, 4]], [[], [1]]]),
    (Reason.USED, "iscrowd", [None, 0, False]),
    (Reason.USED, "segmentation", [[[1, 2, 8, 2], [2, 2, 18, 2, 8, 19]]]),
    (Reason.USED, "bbox", [[-5, -5, 20, 20], [5, 5, 900, 900], [5, 5, 1, 1]]),
]

PANOPTIC = (Reason.SMALL_BOX, Reason.FRACTIONS, Reason.FLAT_BOX)


def damage(rng, coco, reason, key, values, rows):
    """Change annotations, each to another of the values; None removes the key."""
    images = {image["id"]: image for image in coco["images"]}
    for row in rows:
        annotation = coco["annotations"][row]
        value = values[int(rng.integers(len(values)))]
        if isinstance(value, dict) and value.get("size") == "image":
            image = images[annotation["image_id"]]
            value = value | {"size": [image["height"], image["width"]]}
        if value is None and (reason != Reason.NO_MASK or rng.integers(2)):
            annotation.pop(key, None)
        else:
            annotation[key] = value


def draw_case(rng):
    """A damaged file, and the rows of each reason."""
    coco = make_coco(rng, num_images=int(rng.integers(2, 20)), num_annotations=30)
    coco["categories"].append({"id": 50, "name": "none of the config's"})
    rows = rng.permutation(30)
    expected = {}
    for index in rng.choice(len(DAMAGES), int(rng.integers(1, 4)), replace=False):
        number = int(rng.integers(1, 6))
        chosen, rows = rows[:number], rows[number:]
        damage(rng, coco, *DAMAGES[index], chosen)
        reason = DAMAGES[index][0]
        expected[reason] = [*expected.get(reason, []), *chosen.tolist()]
    return coco, expected


def draw_config(rng, path):
    filters = {"filter_empty_gt": bool(rng.integers(2)), "min_size": int(rng.choice([0, 32, 60]))}
    return ConfigDict(
        ann_file=str(path),
        metainfo={"classes": tuple(f"class {index}" for index in range(3))},
        data_prefix={"img": ""},
        filter_cfg=filters if rng.integers(3) else None,
        test_mode=bool(rng.integers(4) == 0),
        indices=[None, None, 2, [0, -1]][int(rng.integers(4))],
    )


def check(path, config, kind=CocoDataset):
    """What is said of a file, and what is used of it."""
    pipeline = [{"type": "LoadAnnotations", "with_mask": True}]
    dataset = kind(**config, lazy_init=True)
    reading = describe_reading(dataset, ConfigDict(config, pipeline=pipeline))
    file = read_coco(str(path))
    usage = find_usage(file, reading)
    return file, usage, describe_usage(str(path), file, usage, reading)


def load_objects(config, kind):
    """Images and objects that MMDetection trains on, with their masks drawn."""
    step = LoadAnnotations(with_bbox=True, with_mask=True)
    dataset = kind(**config, serialize_data=False)
    images, objects = [], Counter()
    for info in dataset.data_list:
        images.append(info["img_id"])
        loaded = step({**info, "ori_shape": (info["height"], info["width"])})
        for instance, ignored in zip(info["instances"], loaded["gt_ignore_flags"], strict=True):
            if not ignored:
                key = (info["img_id"], tuple(instance["bbox"]), instance["bbox_label"])
                objects[key] += 1
    return images, objects


def list_used(file, usage):
    images = [file.images[index]["id"] for index in np.flatnonzero(usage.image_used)]
    objects = Counter()
    for row in np.flatnonzero(usage.used):
        annotation = file.annotations[row]
        left, top, width, height = annotation["bbox"]
        box = (left, top, left + width, top + height)
        objects[annotation["image_id"], box, int(usage.label_of[row])] += 1
    return images, objects


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_counted_or_what_is_used_is_what_mmdetection_uses(seed, tmp_path):
    path = tmp_path / "coco.json"
    refused = 0
    for case in range(25):
        rng = np.random.default_rng([seed, case])
        coco, expected = draw_case(rng)
        kind = KINDS[int(rng.integers(len(KINDS)))]
        if kind == Objects365V1Dataset:  # It sorts them.
            rng.shuffle(coco["categories"])
        path.write_text(json.dumps(coco))
        config = draw_config(rng, path)
        file, usage, findings = check(path, config, kind)
        told = f"seed {seed}, case {case}: {expected}"
        text = "\n".join(finding.text for finding in findings)
        for reason, rows in expected.items():
            left = [row for row in rows if usage.reasons[row] != Reason.LEFT_OUT]
            assert (usage.reasons[left] == reason).all(), told
            if left and EXPLANATIONS.get(reason) and EXPLANATIONS[reason].level > Level.FACT:
                assert f"{len(left)} of 30 annotations in {path} {EXPLANATIONS[reason].why}" in text
            elif left and reason != Reason.USED:
                assert f"{len(left)} {EXPLANATIONS[reason].brief}" in text, told
        if max(finding.level for finding in findings) == Level.REFUSAL:
            refused += 1
        elif usage.image_used.any():
            images, objects = load_objects(config, kind)
            used_images, used_objects = list_used(file, usage)
            assert sorted(set(images)) == used_images, told
            if len(set(images)) == len(images):  # Indices may name one twice.
                assert objects == used_objects, told
    assert 5 < refused < 22


def test_segments_are_counted_as_mmdetection_does(tmp_path):
    path = tmp_path / "panoptic.json"
    damages = [x for x in DAMAGES if x[0] in (*PANOPTIC, Reason.ZERO_AREA, Reason.CROWD)]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        coco = make_coco(rng, num_annotations=30)
        _, key, values = damages[seed % len(damages)]
        damage(rng, coco, Reason.USED, key, values, rng.permutation(30)[:9])
        things = rng.integers(2, size=3).tolist()
        for category, thing in zip(coco["categories"], things, strict=True):
            category["isthing"] = thing
        segments = [
            {"image_id": image["id"], "file_name": "x.png", "segments_info": infos}
            for image in coco["images"]
            if (infos := [x for x in coco["annotations"] if x["image_id"] == image["id"]])
        ]
        path.write_text(json.dumps(coco | {"annotations": segments}))
        classes = tuple(f"class {index}" for index in range(3))
        config = draw_config(rng, path) | {"metainfo": {"classes": classes, "thing_classes": ()}}
        config.indices = None
        file, usage, findings = check(path, config, CocoPanopticDataset)
        assert max(finding.level for finding in findings) < Level.REFUSAL, seed
        samples = CocoPanopticDataset(**config, serialize_data=False).data_list
        used = np.flatnonzero(usage.image_used)
        assert [x["img_id"] for x in samples] == [file.images[row]["id"] for row in used]
        expected = sorted(x["id"] for sample in samples for x in sample["segments_info"])
        kept = usage.used | ((usage.reasons == Reason.CROWD) & np.isin(usage.image_of, used))
        assert sorted(file.annotations[row]["id"] for row in np.flatnonzero(kept)) == expected


def refusals(path, config):
    return [f.text for f in check(path, config)[2] if f.level == Level.REFUSAL]


@pytest.fixture
def written(tmp_path):
    """Write a file with a change, and name what is refused of it."""

    def write(change, classes=("class 0", "class 1", "class 2")):
        coco = make_coco(np.random.default_rng(0))
        change(coco)
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(coco))
        prefix = dict(img="")
        config = ConfigDict(ann_file=str(path), metainfo=dict(classes=classes), data_prefix=prefix)
        return refusals(path, config)

    return write


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"bbox": [5, 5, 0, 9]}, "with a side of 0 or less"),
        ({"segmentation": [[5, 5, 5, 9, 5, 12]]}, "a mask without a pixel of the image"),
    ],
    ids=["box", "mask"],
)
def test_rare_damage_is_told_and_no_problem(tmp_path, damage, told):
    coco = make_coco(np.random.default_rng(0), num_annotations=1000)
    path = tmp_path / "coco.json"
    config = draw_config(np.random.default_rng(0), path)
    for num_damaged, is_problem in ((1, False), (2, True)):
        coco["annotations"][num_damaged].update(damage)
        path.write_text(json.dumps(coco))
        *_, findings = check(path, config)
        text = next(x.text for x in findings if told in x.text)
        assert f"{num_damaged} " in text
        assert any(x.level == Level.PROBLEM for x in findings) == is_problem


def test_ids_that_occur_twice(written):
    def join(coco):
        coco["images"][3]["id"] = coco["images"][1]["id"]
        coco["annotations"][5]["id"] = coco["annotations"][2]["id"]

    images, annotations, *_ = written(join)
    assert images.startswith("1 of 6 images in ")
    assert "(id 11 is that of 0001.jpg, 0003.jpg)" in images
    assert annotations.startswith("1 of 20 annotations in ")
    assert "have the id of another one (for example 3)" in annotations


@pytest.mark.parametrize("value", [[1], {"a": 1}])
@pytest.mark.parametrize("items", ["images", "annotations"])
def test_ids_that_are_no_keys(written, items, value):
    told = written(lambda coco: coco[items][1].update(id=value))
    assert any(f"have a list or dict for an id (for example {value!r})" in line for line in told)


@pytest.mark.parametrize("key", ["id", "file_name", "width", "height"])
def test_images_without_a_key(written, key):
    (line, *_) = written(lambda coco: [image.pop(key) for image in coco["images"][:2]])
    assert line.startswith("2 of 6 images in ")
    assert f"have no '{key}'" in line


@pytest.mark.parametrize("value", [0, -3, "640", NAN, None])
def test_images_without_a_size(written, value):
    (line,) = written(lambda coco: coco["images"][0].update(width=value))
    assert "1 of 6 images" in line
    assert "no positive number (for example image 10: " in line


def test_classes_and_categories(written):
    names = ("class 0", "class 1", "class 2")
    assert not written(lambda coco: None)
    (line,) = written(lambda coco: None, classes=names[::-1])
    assert "another order" in line
    assert "label 0 is 'class 0' in the file and 'class 2' in the config" in line
    assert f"set metainfo.classes to {names}" in line
    # Labels of what is left would move.
    (line,) = written(lambda coco: coco["categories"].pop(0))[:1]
    assert line.startswith("1 of the config's 3 classes are not in the annotation file")
    (line,) = written(lambda coco: None, classes=("a", "b"))
    assert f"it has {names}: set metainfo.classes" in line
    (line,) = written(lambda coco: coco["categories"].append({"id": 9, "name": "class 0"}))
    assert "4 categories for the config's 3 classes" in line
    (line, *_) = written(lambda coco: coco["categories"][0].update(id=4))
    assert line.startswith("1 categories in ")
    (line,) = written(lambda coco: None, classes="class 0")
    assert "('class 0',)" in line


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"images": 3}', '{"images": [3]}', "{", "\ufeff{}"]
)
def test_files_of_another_form(content, tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"it h|Expecting|BOM"):
        read_coco(str(path))


@pytest.mark.parametrize("key", ["iscrowd", "area", "bbox", "segmentation"])
def test_keys_that_a_metric_needs(key, tmp_path):
    coco = make_coco(np.random.default_rng(1))
    for annotation in coco["annotations"][3:9]:
        del annotation[key]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    classes = tuple(f"class {index}" for index in range(3))
    prefix = dict(img="")
    config = ConfigDict(ann_file=str(path), metainfo=dict(classes=classes), data_prefix=prefix)
    file, usage, _ = check(path, config)
    (line,) = [finding.text for finding in check_metric_keys(str(path), file, usage, masks=True)]
    assert line.startswith(f"6 of 20 annotations in {path} have no '{key}'")
    masks_alone = key == "segmentation"
    assert len([*check_metric_keys(str(path), file, usage, masks=False)]) == (not masks_alone)


@pytest.mark.slow
def test_file_of_coco_size(tmp_path):
    """118,000 images and 860,000 annotations: what train.py checks, in this process's CPU time."""
    import resource
    import time

    path = tmp_path / "coco.json"
    write_large_coco(path)
    classes = tuple(f"class {index}" for index in range(80))
    prefix = dict(img="")
    config = ConfigDict(ann_file=str(path), metainfo=dict(classes=classes), data_prefix=prefix)
    start = time.process_time()
    _, usage, _ = check(path, config)
    assert time.process_time() - start < 30
    assert len(usage.reasons) == 860_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20
