import base64
import json
import os
import shutil

import mmcv
import numpy as np
import pytest
from PIL import Image

from slide_mm.data_checks.coco_file import read_coco
from slide_mm.engine import ConfigError
from slide_mm.new_config.detection import find_detection
from slide_mm.new_config.folders import split_of, words_of

COLOR = (10, 200, 30)


def draw(path, size=(64, 48), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOR).convert(mode).save(path)


def coco(images, **changes):
    """An object in each of the images."""
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 64, "height": 48}
            for number, name in enumerate(images)
        ],
        "annotations": [
            {
                **{"id": number + 1, "image_id": number, "category_id": 3, "bbox": [8, 4, 20, 30]},
                **{"area": 600, "iscrowd": 0, "segmentation": [[8, 4, 28, 4, 28, 34, 8, 34]]},
            }
            for number in range(len(images))
        ],
        "categories": [{"id": 3, "name": "pear"}],
    }
    return {**content, **changes}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def read(split):
    """What a split's file holds: a class's name and box by image; all images must be there."""
    file = read_coco(str(split.ann_file))
    names = {category["id"]: category["name"] for category in file.categories}
    found = {}
    for image in file.images:
        path = split.images / image["file_name"]
        assert path.is_file()
        with Image.open(path):
            found.setdefault(path.name, [])
        for item in file.annotations:
            if item["image_id"] == image["id"]:
                box = tuple(round(value) for value in item["bbox"])
                found[path.name].append((names[item["category_id"]], *box))
    assert len(file.images) == split.num_images
    assert len(file.annotations) == split.num_objects == sum(map(len, found.values()))
    return found


PEAR = [("pear", 8, 4, 20, 30)]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("test set/train/all.json", "train"),
        ("train/val/train_val.json", "val"),
        ("trainset/instances_Validation2017.json", "val"),
        ("TrainImages_2/x.json", "train"),
        ("TESTING-1/x.json", "test"),
        ("valannot/x.json", "val"),
        ("trains/validity/contest.json", None),
        ("train_and_test/x.json", None),
    ],
)
def test_splits_are_told_by_the_innermost_name(path, split, tmp_path):
    assert split_of(tmp_path / path, tmp_path) == split


def test_words_of_names():
    assert words_of("JPEGImages_2 of-RGBMasks") == ["jpeg", "images", "of", "rgb", "masks"]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["images/a.png", "images/b.png"], ["a.png", "b.png"]),
        (["images/a.png", "images/b.png"], ["images/a.png", "images/b.png"]),
        (["images/a.png", "images/b.png"], ["images\\a.png", "C:\\old\\images\\b.png"]),
        (["images/a.png", "images/b.png"], ["/home/me/data/a.png", "/home/me/data/b.png"]),
        (["images/red/a.png", "images/green/b.png"], ["a.png", "b.png"]),
        (["a.PNG", "b.png"], ["A.png", "B.PNG"]),
        (["my images/f ü.png", "my images/b.png"], ["f u\u0308.png", "b.png"]),
        (["x/1.png", "y/1.png", "y/2.png"], ["old/x/1.png", "old/y/1.png", "old/y/2.png"]),
    ],
)
def test_images_are_found_by_what_is_left_of_their_names(places, names, tmp_path):
    for place in places:
        draw(tmp_path / place)
    write(tmp_path / "all.json", coco(names))
    found = find_detection(tmp_path, seed=0)
    paths = []
    for split in found.splits.values():
        assert set(map(str, read(split).values())) == {str(PEAR)}
        content = json.loads(split.ann_file.read_text(encoding="utf-8"))
        paths += [split.images / image["file_name"] for image in content["images"]]
    assert sorted(paths) == sorted(tmp_path / place for place in places)


def test_images_of_the_same_names_are_those_of_the_split(tmp_path):
    for split in ("train", "valid"):
        for name in ("1.png", "2.png"):
            draw(tmp_path / split / "pictures" / name)
        write(tmp_path / "annotations" / f"{split}.json", coco(["/old/1.png", "/old/2.png"]))
    found = find_detection(tmp_path, seed=0)
    for name, folder in {"train": "train", "val": "valid"}.items():
        content = json.loads(found.splits[name].ann_file.read_text())
        assert all(x["file_name"].startswith(f"{folder}/") for x in content["images"])


def test_files_that_need_nothing_stay_as_they_are(tmp_path):
    for split in ("train2017", "val2017"):
        draw(tmp_path / split / "a.png")
        write(tmp_path / f"annotations/instances_{split}.json", coco(["a.png"]))
        write(tmp_path / f"annotations/person_keypoints_{split}.json", coco(["a.png"]))
        write(tmp_path / f"annotations/{split[-5]}_all.json", coco(["a.png"]))
    before = sorted(tmp_path.rglob("*"))
    found = find_detection(tmp_path, seed=0)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.notes, found.num_without_mask) == ([], 0)
    assert found.splits["val"].images == tmp_path / "val2017"


def test_roboflow(tmp_path):
    """Ids begin at 0, a category that nothing is of has the name of one that is used."""
    for split in ("train", "valid", "test"):
        names = [f"{split}_{number}_jpg.rf.0a1b.jpg" for number in range(3)]
        content = coco(names)
        content["categories"] = [
            {"id": 0, "name": "pear", "supercategory": "none"},
            {"id": 3, "name": "pear", "supercategory": "pear"},
        ]
        for item in content["annotations"]:
            item["id"] -= 1
            item["segmentation"] = [[]] if split == "test" else []
        for name in names:
            draw(tmp_path / split / name)
        write(tmp_path / split / "_annotations.coco.json", content)
    found = find_detection(tmp_path, seed=0)
    assert found.classes == ("pear",)
    assert list(found.splits) == ["train", "val", "test"]
    for name, folder in {"train": "train", "val": "valid", "test": "test"}.items():
        split = found.splits[name]
        content = json.loads(split.ann_file.read_text())
        assert [item["id"] for item in content["annotations"]] == [1, 2, 3]
        assert len(content["categories"]) == 1
        assert all(key.startswith(folder) for key in read(split))
    assert found.num_without_mask == 9


def test_what_is_missing_is_filled_in(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    content = coco(["a.png", "b.png"])
    for item in content["annotations"]:
        for key in ("id", "area", "bbox", "iscrowd"):
            del item[key]
    for image in content["images"]:
        del image["width"]
        image["height"] = 0
    write(tmp_path / "all.json", content)
    for split in find_detection(tmp_path, seed=0).splits.values():
        assert list(read(split).values()) == [PEAR]
        content = json.loads(split.ann_file.read_text())
        assert content["annotations"][0]["area"] == 600
        assert content["annotations"][0]["iscrowd"] == 0
        assert (content["images"][0]["width"], content["images"][0]["height"]) == (64, 48)


def test_splits_agree_on_classes(tmp_path):
    """By their names, whatever the files' ids and orders."""
    categories = {
        "train": [
            {"id": 7, "name": "plum", "supercategory": "stone fruit"},
            {"id": 3, "name": "pear"},
            {"id": 9, "name": "none"},
        ],
        "val": [{"id": 3, "name": "pear"}, {"id": 1, "name": "plum"}, {"id": 2, "name": 5}],
    }
    for split, listed in categories.items():
        names = [f"{split}{number}.png" for number in range(len(listed))]
        content = coco(names, categories=listed)
        for item, category in zip(content["annotations"], listed, strict=True):
            item["category_id"] = category["id"]
        content["annotations"] = [x for x in content["annotations"] if x["category_id"] != 9]
        for name in names:
            draw(tmp_path / split / name)
        write(tmp_path / f"{split}.json", content)
    found = find_detection(tmp_path, seed=0)
    assert found.classes == ("plum", "pear", "5")
    assert "left out: none: no object is of them" in found.notes
    for name, expected in {"train": ["plum", "pear"], "val": ["pear", "plum", "5"]}.items():
        objects = [item[0] for items in read(found.splits[name]).values() for item in items]
        assert objects == expected
        content = json.loads(found.splits[name].ann_file.read_text())
        assert [(x["name"], x["supercategory"]) for x in content["categories"]] == [
            ("plum", "stone fruit" if name == "train" else "plum"),
            ("pear", "pear"),
            ("5", "5"),
        ]


def test_crowds_keep_their_run_lengths(tmp_path):
    runs = {"size": [48, 64], "counts": [0, 48 * 64]}
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    content = coco(["a.png", "b.png"])
    for item in content["annotations"]:
        item.update(iscrowd=1, segmentation=runs, id=0)
    write(tmp_path / "all.json", content)
    found = find_detection(tmp_path, seed=0)
    assert found.num_without_mask == 0
    for split in found.splits.values():
        (item,) = json.loads(split.ann_file.read_text())["annotations"]
        assert (item["segmentation"], item["iscrowd"]) == (runs, 1)


def test_a_file_of_the_user_is_not_written_over(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    write(tmp_path / "coco_train.json", coco(["a.png", "b.png"]))
    before = (tmp_path / "coco_train.json").read_bytes()
    with pytest.raises(ConfigError, match=r"coco_train\.json would be written over"):
        find_detection(tmp_path, seed=0)
    assert (tmp_path / "coco_train.json").read_bytes() == before


def test_links_to_folders_are_followed(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "disk"
    root.mkdir()
    for name in ("a.png", "b.png"):
        draw(elsewhere / name)
    (root / "images").symlink_to(elsewhere)
    (elsewhere / "around").symlink_to(root)
    write(root / "all.json", coco(["a.png", "b.png"]))
    found = find_detection(root, seed=0)
    assert sum(split.num_images for split in found.splits.values()) == 2


def yolo(root, folder, names, line="0 0.28125 0.395833 0.3125 0.625", labels=None):
    for name in names:
        draw(root / folder / name)
        stem = os.path.splitext(name)[0]
        path = root / (labels or folder.replace("images", "labels")) / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{line}\n" if line else "")


def describe(root, text="names: [pear]\n"):
    (root / "data.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        (("images/train", "images/val"), ""),
        (("train", "val"), ""),
        (("Train/Images", "Val/Images"), ""),
        (("train/images", "valid/images"), "train: ../train/images\nval: ../valid/images"),
        (("images/a", "images/b"), "path: ../x\ntrain: images/a\nval: images/b"),
        (("my/images/a", "my/images/b"), "path: my\ntrain: [images/a]\nval: images/b"),
        (("images/a", "images/b"), "path: C:\\x\\y\ntrain: images\\a\nval: images\\b\ntest:"),
        (("images/a", "images/b"), "train: first.txt\nval: second.txt"),
    ],
)
def test_yolo_splits(folders, text, tmp_path):
    root = tmp_path / "data set"
    contents = {"train": ["1.png", "test.png", "3.JPG"], "val": ["1.png", "5.png"]}
    for folder, names, file in zip(folders, contents.values(), ("first", "second"), strict=True):
        labels = folder.replace("images", "labels").replace("Images", "Labels")
        yolo(root, folder, names, labels=labels)
        (root / f"{file}.txt").write_text("".join(f"./{folder}/{name}\n" for name in names))
    describe(root, f"{text}\nnames: [pear]")
    found = find_detection(root, seed=0)
    assert found.layout == "YOLO"
    for split, names in contents.items():
        assert read(found.splits[split]) == dict.fromkeys(names, PEAR)


@pytest.mark.parametrize(
    ("val", "expected"), [("images/val", ["c.png"]), ("images", ["a.png", "b.png", "c.png"])]
)
def test_yolo_splits_inside_one_another(val, expected, tmp_path):
    """Ultralytics' examples train on the images that they validate with; here some are drawn."""
    yolo(tmp_path, "images", ["a.png", "b.png"])
    yolo(tmp_path, "images/val" if val != "images" else "images/x", ["c.png"])
    describe(tmp_path, f"train: images\nval: {val}\nnames: [pear]")
    found = find_detection(tmp_path, seed=0)
    names = list(read(found.splits["val"]))
    assert names == expected if val != "images" else len(names) == 1
    assert sorted([*names, *read(found.splits["train"])]) == ["a.png", "b.png", "c.png"]


def test_yolo_images_that_a_yaml_file_does_not_name_are_left_out(tmp_path):
    for folder in ("images/train", "images/val"):
        yolo(tmp_path, folder, [f"{folder[-2:]}.png"])
    draw(tmp_path / "runs/train/drawn.png")
    describe(tmp_path, "train: images/train\nval: images/val\nnames: [pear]")
    found = find_detection(tmp_path, seed=0)
    assert [split.num_images for split in found.splits.values()] == [1, 1]
    assert [x for x in found.notes if "1 images of no split" in x and "drawn.png" in x]


def test_yolo_lists_of_images(tmp_path):
    yolo(tmp_path, "obj_data", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "obj.names").write_text("pear\n")
    (tmp_path / "train.txt").write_text("data/obj_data/a.jpg\ndata/obj_data/c.jpg\n")
    (tmp_path / "valid.txt").write_text("data/obj_data/b.jpg\n")
    found = find_detection(tmp_path, seed=0)
    assert read(found.splits["train"]) == {"a.jpg": PEAR, "c.jpg": PEAR}
    assert read(found.splits["val"]) == {"b.jpg": PEAR}


def test_yolo_classes_are_in_the_order_of_their_numbers(tmp_path):
    names = ["zebra", "ant", "never", "müsli"]
    for number in (3, 1, 0):
        line = f"{number}.0 0.5 0.5 0.25 0.25"
        yolo(tmp_path, "images", [f"{number}.png"], line=line)
    yolo(tmp_path, "images", ["empty.png"], line="")
    draw(tmp_path / "images/bare.png")
    (tmp_path / "labels/classes.txt").write_text("\ufeff" + "\n".join(names), encoding="utf-8")
    found = find_detection(tmp_path, seed=0)
    assert found.classes == ("zebra", "ant", "müsli")
    images = {k: v for split in found.splits.values() for k, v in read(split).items()}
    assert images["empty.png"] == images["bare.png"] == []
    assert images["3.png"] == [("müsli", 24, 18, 16, 12)]


def test_yolo_without_names(tmp_path):
    for number in (2, 10):
        yolo(tmp_path, "images", [f"{number}.png"], line=f"{number} 0.5 0.5 0.25 0.25")
    assert find_detection(tmp_path, seed=0).classes == ("2", "10")


def test_yolo_polygons_and_keypoints(tmp_path):
    polygon = "0 0.125 0.25 0.5 0.25 0.5 0.75 0.125 0.75"
    yolo(tmp_path, "images", ["a.png", "b.png"], line=polygon)
    describe(tmp_path)
    found = find_detection(tmp_path, seed=0)
    assert found.num_without_mask == 0
    (item,) = json.loads(found.splits["train"].ann_file.read_text())["annotations"]
    assert item["bbox"] == [8, 12, 24, 24]
    assert (item["area"], item["segmentation"]) == (576, [[8, 12, 32, 12, 32, 36, 8, 36]])
    describe(tmp_path, "names: [pear]\nkpt_shape: [2, 2]\n")
    for file in (tmp_path / "labels").iterdir():
        file.write_text("0 0.5 0.5 0.25 0.25 0.1 0.1 0.2 0.2\n")
    found = find_detection(tmp_path, seed=0)
    assert found.num_without_mask == 2
    assert next(iter(read(found.splits["train"]).values())) == [("pear", 24, 18, 16, 12)]


def voc(path, name, box=(8, 4, 28, 34), difficult=0, label="pear"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    path.write_text(
        f"<annotation><filename>{name}</filename><object><name>{label}</name>"
        f"<difficult>{difficult}</difficult><part><name>leaf</name></part>"
        f"<bndbox>{sides}</bndbox></object></annotation>",
        encoding="utf-8",
    )


def test_voc_images_are_those_nearest_to_their_annotations(tmp_path):
    sizes = {"train": (64, 48), "valid": (100, 80)}
    for split, size in sizes.items():
        for name in ("1", "2"):
            draw(tmp_path / split / "JPEGImages" / f"{name}.png", size)
            voc(tmp_path / split / "Annotations" / f"{name}.xml", f"{name}.jpg")
    (tmp_path / "train" / "project.xml").write_text("<project/>")
    found = find_detection(tmp_path, seed=0)
    for split, size in zip(("train", "val"), sizes.values(), strict=True):
        content = json.loads(found.splits[split].ann_file.read_text())
        assert {(image["width"], image["height"]) for image in content["images"]} == {size}
        assert read(found.splits[split]) == {"1.png": PEAR, "2.png": PEAR}


def test_voc_splits_of_the_images_folders(tmp_path):
    for split in ("train", "val"):
        for number in range(3):
            draw(tmp_path / "images" / split / f"{split}{number}.png")
            voc(tmp_path / "Annotations" / f"{split}{number}.xml", f"{split}{number}.png")
    found = find_detection(tmp_path, seed=0)
    for name, split in found.splits.items():
        assert sorted(read(split)) == [f"{name}{number}.png" for number in range(3)]


def test_voc_lists_and_difficult_objects(tmp_path):
    for number in range(5):
        stem = f"train a {number}"
        draw(tmp_path / f"JPEGImages/{stem}.jpg")
        voc(tmp_path / f"Annotations/{stem}.xml", "old name.jpg", difficult=number % 2)
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("train a 0\ntrain a 1\n")
    (lists / "val.txt").write_text("train a 2\ntrain a 3\ntrain a 4\n")
    (lists / "test.txt").write_text("train a 4\n")
    (tmp_path / "ImageSets/Action").mkdir()
    (tmp_path / "ImageSets/Action/train.txt").write_text("train a 3\n")
    found = find_detection(tmp_path, seed=0)
    for split, numbers in {"train": (0, 1), "val": (2, 3)}.items():
        assert list(read(found.splits[split])) == [f"train a {number}.jpg" for number in numbers]
        content = json.loads(found.splits[split].ann_file.read_text())
        assert [item["iscrowd"] for item in content["annotations"]] == [0, 1]


def test_voc_images_have_the_name_of_the_file_or_else_the_one_in_it(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / "JPEGImages" / name)
    for stem, name in {"a": "b.png", "other": "c.png"}.items():
        voc(tmp_path / "Annotations" / f"{stem}.xml", name)
    found = find_detection(tmp_path, seed=0)
    assert {name for split in found.splits.values() for name in read(split)} == {"a.png", "c.png"}


def labelme(path, shapes, image):
    write(path, {"version": "5.5.0", "shapes": shapes, "imagePath": image, "imageData": None})


SQUARE = {"label": "pear", "points": [[28, 34], [8, 4]], "shape_type": "rectangle"}


def test_labelme_shapes(tmp_path):
    circle = {"label": "pear", "points": [[20, 20], [30, 20]], "shape_type": "circle"}
    parts = [
        {"label": "leaf", "group_id": 1, "points": [[x, 2], [x + 4, 2], [x, 8]]} for x in (10, 30)
    ]
    point = {"label": "seed", "points": [[3, 3]], "shape_type": "point"}
    mask = Image.fromarray(np.array([[0, 255, 255], [255, 255, 255]], np.uint8))
    mask.save(tmp_path / "mask.png")
    encoded = base64.b64encode((tmp_path / "mask.png").read_bytes()).decode()
    (tmp_path / "mask.png").unlink()
    painted = {"label": "blot", "shape_type": "mask", "points": [[5, 6], [7, 7]], "mask": encoded}
    for name in ("val1", "val2"):  # Names of images say no split.
        draw(tmp_path / f"{name}.png")
        labelme(
            tmp_path / f"{name}.json", [SQUARE, circle, *parts, point, painted], f"..\\{name}.jpg"
        )
    found = find_detection(tmp_path, seed=0)
    assert found.classes == ("blot", "leaf", "pear")
    assert found.notes == ["left out: 2 points and lines, which are no objects"]
    assert found.num_without_mask == 0
    for split in found.splits.values():
        ((_, objects),) = read(split).items()
        assert sorted(objects) == [
            ("blot", 5, 6, 3, 2),
            ("leaf", 10, 2, 24, 6),
            ("pear", 8, 4, 20, 30),
            ("pear", 10, 10, 20, 20),
        ]
        file = json.loads(split.ann_file.read_text())
        by_box = {item["bbox"][0]: item for item in file["annotations"]}
        assert by_box[5]["area"] == 5
        assert sum(item["area"] for item in file["annotations"]) == pytest.approx(
            600 + 24 + 5 + 3.1215 * 100, rel=1e-3
        )


def test_labelme_files_apart_from_their_images(tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / "images" / f"{name}.jpg")
        draw(tmp_path / "masks" / f"{name}.png")
        labelme(tmp_path / "labels" / f"{name}.json", [SQUARE], f"../images/{name}.jpg")
    found = find_detection(tmp_path, seed=0)
    content = json.loads(found.splits["train"].ann_file.read_text())
    assert content["images"][0]["file_name"].startswith("images/")


def test_labelme_converted_by_its_own_script(tmp_path):
    """labelme2coco.py: a background of id 0, run lengths of nothing, pictures beside."""
    names = ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    for name in names:
        draw(tmp_path / name)
        draw(tmp_path / name.replace("JPEGImages", "Visualization"))
    content = coco(names)
    content["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    write(tmp_path / "annotations.json", content)
    found = find_detection(tmp_path, seed=0)
    assert found.classes == ("pear",)
    assert all(split.images == tmp_path for split in found.splits.values())
    contents = [json.loads(split.ann_file.read_text()) for split in found.splits.values()]
    assert {item["id"] for x in contents for item in x["annotations"]} == {1, 2}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_all_kinds_are_measured(mode, tmp_path):
    yolo(tmp_path, "images", ["a.png", "b.png"])
    for path in (tmp_path / "images").iterdir():
        draw(path, mode=mode)
    describe(tmp_path)
    for split in find_detection(tmp_path, seed=0).splits.values():
        assert list(read(split).values()) == [PEAR]


def test_turned_images_are_measured_upright(tmp_path):
    """As they are loaded: boxes in fractions are of the upright image."""
    yolo(tmp_path, "images", ["a.jpg", "b.jpg"], line="0 0.5 0.5 1.0 0.5")
    exif = Image.Exif()
    exif[274] = 6
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (64, 48), COLOR).save(path, exif=exif)
    describe(tmp_path)
    split = find_detection(tmp_path, seed=0).splits["train"]
    content = json.loads(split.ann_file.read_text())
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (48, 64)
    assert content["annotations"][0]["bbox"] == [0, 16, 48, 32]
    loaded = mmcv.imread(str(split.images / content["images"][0]["file_name"]))
    assert loaded.shape[:2] == (64, 48)


def test_images_of_no_split_are_told(tmp_path):
    for folder in ("images/train", "images/val", "images/more"):
        yolo(tmp_path, folder, [f"{folder[-2:]}.png"])
    describe(tmp_path)
    found = find_detection(tmp_path, seed=0)
    assert [x for x in found.notes if "1 images of no split, such as" in x]
    assert [split.num_images for split in found.splits.values()] == [1, 1]


def test_a_split_without_objects_is_no_validation(tmp_path):
    yolo(tmp_path, "images/train", ["a.png", "b.png"])
    yolo(tmp_path, "images/test", ["c.png"], line="")
    describe(tmp_path)
    found = find_detection(tmp_path, seed=0)
    assert sorted([*read(found.splits["train"]), *read(found.splits["val"])]) == ["a.png", "b.png"]


def break_coco(root, change):
    for name in ("a.png", "b.png"):
        draw(root / name)
    content = coco(["a.png", "b.png"])
    change(content)
    write(root / "all.json", content)


def two_candidates(root):
    for name in ("first", "second"):
        write(root / f"{name}.json", coco([]))


def missing_image(root):
    break_coco(root, lambda content: content["images"][1].update(file_name="gone.png"))


def doubtful_image(root):
    for folder in ("x", "y"):
        draw(root / folder / "a.png")
    draw(root / "x/b.png")
    write(root / "all.json", coco(["old/a.png", "old/b.png"]))


def no_object(root):
    break_coco(root, lambda content: content.update(annotations=[]))


def one_object(root):
    break_coco(root, lambda content: content["annotations"].pop())


def no_name(root):
    break_coco(root, lambda content: content["categories"][0].pop("name"))


def list_for_id(root):
    break_coco(root, lambda content: content["annotations"][1].update(category_id=[3]))


def no_dict(root):
    break_coco(root, lambda content: content["annotations"].append("x"))


def only_test(root):
    draw(root / "a.png")
    write(root / "test.json", coco(["a.png"]))


def other_names(root):
    yolo(root, "images", ["a.png", "b.png"])
    (root / "labels/a.txt").rename(root / "labels/c.txt")


def two_labels(root):
    yolo(root, "images", ["a.png"])
    shutil.copytree(root / "labels", root / "old")


def two_images(root):
    yolo(root, "images", ["a.png"])
    draw(root / "images/a.jpg")


def other_classes(root):
    yolo(root, "images", ["a.png", "b.png"])
    describe(root)
    (root / "labels/classes.txt").write_text("plum\n")


def too_few_names(root):
    yolo(root, "images", ["a.png", "b.png"], line="1 0.5 0.5 0.1 0.1")
    describe(root)


def captions(root):
    draw(root / "a.png")
    content = coco(["a.png"], annotations=[{"id": 1, "image_id": 0, "caption": "a pear"}])
    write(root / "captions.json", content)


def broken_image(root):
    yolo(root, "images", ["a.png", "b.png"])
    (root / "images/b.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "has no annotations: looked for .json .* found nothing"),
        (lambda root: draw(root / "A.JPG"), "has no annotations: .* found 1 .jpg"),
        (captions, "has no annotations: .* found 1 .png, 1 .json"),
        (two_candidates, "has 2 annotation files for all images, such as first.json and second"),
        (missing_image, "all.json names gone.png, which is nowhere in .* 1 of its 2 images are"),
        (doubtful_image, "all.json names old/a.png, which may be .*a.png or .*a.png"),
        (no_object, "has no objects to train on: found 0 of"),
        (one_object, "1 images have objects: give at least 2"),
        (no_name, "its categories need id and name, and one is {'id': 3}"),
        (list_for_id, "its annotations need image_id and category_id, and one is"),
        (no_dict, "its annotations need image_id and category_id, and one is x"),
        (only_test, "has no objects to train on: found 1 of test"),
        (other_names, "c.txt has labels of no image: looked for an image called c"),
        (two_labels, "a.png is the image of .*a.txt, and of .*a.txt too"),
        (two_images, "a.txt may be of .*a.* or .*a"),
        (other_classes, "have different names: leave one"),
        (too_few_names, "has the line '1 0.5 0.5 0.1 0.1': give a class's number from 0 to 0"),
        (broken_image, "b.png cannot be read"),
    ],
)
def test_wrong_folders_are_told_in_a_line(prepare, message, tmp_path):
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        find_detection(tmp_path, seed=0)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("coco_*.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "0 0.5 0.5\n", "a.txt has the line '0 0.5 0.5': give a class's number"),
        ("a.txt", "x 0.5 0.5 0.1 0.1\n", "a.txt has the line 'x"),
        ("a.txt", "0 0.1 0.1 0.2 0.2 0.3\n", "a.txt has the line"),
        ("a.txt", "0 0.1 0.1 0.2 inf nan nan\n0 1\n", "a.txt has the line '0 1'"),
        ("a.xml", "<annotation>", "a.xml is no annotation of Pascal VOC"),
        ("a.xml", "<annotation><object/></annotation>", "a.xml is no annotation of Pascal VOC"),
        ("b.xml", "<annotation></annotation>", "b.xml is of the image b, which is nowhere in"),
        ("c.json", '{"shapes": [], "imagePath": "c.jpg"}', "c.jpg, which is nowhere in"),
        (
            "a.json",
            '{"shapes": [{"label": "x", "points": [[1, 2]]}]}',
            "without a label or corners",
        ),
        ("a.json", '{"shapes": ["x"]}', "without a label or corners"),
    ],
)
def test_broken_annotations_are_named(name, content, message, tmp_path):
    draw(tmp_path / "a.jpg")
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_detection(tmp_path, seed=0)
