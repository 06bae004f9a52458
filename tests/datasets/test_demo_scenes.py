import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from slide_mm.datasets import demo_scenes, make_demo_scenes

SIZE = {"num_training": 3, "num_validation": 2, "image_size": 96}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    assert make_demo_scenes(root, **SIZE)
    return root


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def annotations(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def test_same_arguments_give_the_same_bytes(scenes, tmp_path):
    make_demo_scenes(tmp_path / "again", **SIZE)
    assert contents(tmp_path / "again") == contents(scenes)
    make_demo_scenes(tmp_path / "other", **SIZE, seed=1)
    assert contents(tmp_path / "other") != contents(scenes)


def test_splits_share_no_digit(scenes):
    used = [
        {digit["digit_index"] for digit in annotations(scenes, split)["annotations"]}
        for split in demo_scenes.SPLITS
    ]
    assert all(used)
    assert max(used[0]) < min(used[1])


@pytest.mark.parametrize("split", demo_scenes.SPLITS)
def test_masks_boxes_and_label_maps_agree(scenes, split):
    coco = COCO(scenes / "annotations" / f"instances_{split}.json")
    for image in coco.dataset["images"]:
        stem = Path(image["file_name"]).stem
        picture = Image.open(scenes / "images" / split / image["file_name"])
        assert (picture.width, picture.height) == (image["width"], image["height"])
        labels = np.zeros((image["height"], image["width"]), dtype=int)
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation).astype(bool)
            assert not labels[mask].any(), "instances overlap"
            labels[mask] = annotation["category_id"]
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum() == mask_utils.area(annotation["segmentation"])
        label_map = np.asarray(Image.open(scenes / "annotations" / split / f"{stem}.png"))
        np.testing.assert_array_equal(label_map, labels)


def test_complete_scenes_are_kept_and_others_replaced(tmp_path):
    root = tmp_path / "scenes"
    make_demo_scenes(root, **SIZE)
    assert not make_demo_scenes(root, **SIZE)
    next((root / "images" / "training").iterdir()).unlink()
    assert make_demo_scenes(root, **SIZE)
    assert make_demo_scenes(root, **SIZE | {"num_validation": 3})
    assert len(annotations(root, "validation")["images"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(root, split, *rest):
        (root / split).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_scenes, "_write_split", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_scenes(tmp_path / "scenes", **SIZE)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(FileExistsError, match="something other than demo scenes"):
        make_demo_scenes(tmp_path, **SIZE)


@pytest.mark.parametrize("wrong", [{"num_validation": 0}, {"image_size": 32}])
def test_wrong_sizes_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_demo_scenes(tmp_path / "scenes", **SIZE | wrong)
