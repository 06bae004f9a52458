import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slide_mm.datasets import crop_objects

BOXES = [[10, 20, 8, 4], [0, 0, 6, 10], [36, 26, 4, 4], [0, 0, 40, 30]]


@pytest.fixture
def detection_data(tmp_path):
    """Annotations and images of a folder with one white object an image."""
    images, annotations = [], []
    for index, (left, top, width, height) in enumerate(BOXES):
        pixels = np.zeros((30, 40, 3), np.uint8)
        pixels[top : top + height, left : left + width] = 255
        name = f"{index}.png"
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": index, "file_name": name})
        annotations.append(
            {"id": 100 + index, "image_id": index, "category_id": 5, "bbox": BOXES[index]}
        )
    categories = [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path / "coco.json", tmp_path


def test_crops_hold_their_whole_object_and_some_of_its_surroundings(detection_data, tmp_path):
    assert crop_objects(*detection_data, tmp_path / "out") == len(BOXES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat", "dog"]
    for index, (*_, width, height) in enumerate(BOXES):
        crop = np.asarray(Image.open(tmp_path / "out" / "cat" / f"{100 + index}.jpg"))
        side = round(1.5 * max(width, height))
        assert crop.shape == (min(side, 30), min(side, 40), 3)
        white = (crop[..., 0] > 127).sum()
        assert white == pytest.approx(width * height, rel=0.1)


def test_what_exists_is_left_alone_and_what_is_missing_named(detection_data, tmp_path):
    with pytest.raises(FileExistsError, match=r"remove it or name another"):
        crop_objects(*detection_data, tmp_path)
    Path(tmp_path, "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        crop_objects(*detection_data, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..", "", ".", "a/../../../evil", "a/b"]
)
@pytest.mark.parametrize(
    ("key", "field"), [("categories", "name"), ("annotations", "id"), ("images", "file_name")]
)
def test_no_name_leads_out_of_the_folders(detection_data, tmp_path, key, field, name):
    ann_file, images = detection_data
    coco = json.loads(ann_file.read_text())
    coco[key][0][field] = f"{name}/{name}" if key == "annotations" else name
    ann_file.write_text(json.dumps(coco))
    before = sorted(tmp_path.parent.rglob("*"))
    # Images alone may lie in folders of their own.
    kind = FileNotFoundError if (key, name) == ("images", "a/b") else ValueError
    with pytest.raises(kind, match=r"the name|unknown file extension|No such file"):
        crop_objects(ann_file, images, tmp_path / "out")
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("damage", [{"bbox": None}, {"bbox": [1, 2, 0, 4]}, {"image_id": 99}])
def test_damaged_annotations_are_told(detection_data, tmp_path, damage):
    ann_file, images = detection_data
    coco = json.loads(ann_file.read_text())
    coco["annotations"][1].update(damage)
    ann_file.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"is not of COCO's form|without area"):
        crop_objects(ann_file, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
