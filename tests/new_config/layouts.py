"""Folders of data in the layouts that people have, made from the demo's scenes."""

import json
import shutil
from xml.etree import ElementTree


def read(scenes, split):
    return json.loads((scenes / f"annotations/instances_{split}.json").read_text())


def as_polygons(content):
    """Boxes' corners in the place of masks, which those formats can't all say."""
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        item.update(segmentation=[corners], area=width * height)
    return content


def coco(scenes, root):
    for split in ("training", "validation"):
        folder = root / f"{split.removesuffix('ing').removesuffix('idation')}2017"
        shutil.copytree(scenes / f"images/{split}", folder)
        file = root / f"annotations/instances_{folder.name}.json"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(scenes / f"annotations/instances_{split}.json", file)


def roboflow(scenes, root):
    """Images beside annotations, and a category that nothing is of."""
    for split, folder in {"training": "train", "validation": "valid"}.items():
        shutil.copytree(scenes / f"images/{split}", root / folder)
        content = as_polygons(read(scenes, split))
        content["categories"].insert(0, {"id": 0, "name": "digits", "supercategory": "none"})
        (root / folder / "_annotations.coco.json").write_text(json.dumps(content))


def one_file(scenes, root):
    shutil.copytree(scenes / "images/training", root / "images")
    shutil.copy(scenes / "annotations/instances_training.json", root / "all.json")


def _each(scenes):
    for split, name in {"training": "train", "validation": "val"}.items():
        content = read(scenes, split)
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            objects = [x for x in content["annotations"] if x["image_id"] == image["id"]]
            labelled = [(names[x["category_id"]], x["bbox"]) for x in objects]
            yield name, scenes / f"images/{split}" / image["file_name"], image, labelled


def yolo(scenes, root):
    names = [category["name"] for category in read(scenes, "training")["categories"]]
    lines = "".join(f"  {number}: '{name}'\n" for number, name in enumerate(names))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{lines}")
    for split, path, image, objects in _each(scenes):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "images" / split)
        width, height = image["width"], image["height"]
        (root / "labels" / split / f"{path.stem}.txt").write_text(
            "".join(
                f"{names.index(name)} {(x + w / 2) / width} {(y + h / 2) / height} "
                f"{w / width} {h / height}\n"
                for name, (x, y, w, h) in objects
            )
        )


def voc(scenes, root):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    stems = {"train": [], "val": []}
    for split, path, _, objects in _each(scenes):
        stem = f"{split}_{path.stem}"
        stems[split].append(stem)
        shutil.copy(path, root / "JPEGImages" / f"{stem}.jpg")
        content = ElementTree.Element("annotation")
        ElementTree.SubElement(content, "filename").text = f"{stem}.jpg"
        for name, (x, y, w, h) in objects:
            node = ElementTree.SubElement(content, "object")
            ElementTree.SubElement(node, "name").text = name
            box = ElementTree.SubElement(node, "bndbox")
            for key, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True
            ):
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(content).write(root / "Annotations" / f"{stem}.xml")
    for split, names in stems.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))


def labelme(scenes, root):
    """All in one folder: nothing says what is for validation."""
    for split, path, _, objects in _each(scenes):
        stem = f"{split}_{path.stem}".replace("train", "a").replace("val", "b")
        shutil.copy(path, root / f"{stem}.jpg")
        shapes = [
            {"label": name, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle"}
            for name, (x, y, w, h) in objects
        ]
        content = {"shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None}
        (root / f"{stem}.json").write_text(json.dumps(content))


def label_maps(scenes, root):
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            shutil.copytree(scenes / kind / split, root / kind / split)
    (root / "classes.txt").write_text("\n".join(["background", *"0123456789"]))


def flat_label_maps(scenes, root):
    """One folder of images, one of label maps with names of their own."""
    shutil.copytree(scenes / "images/training", root / "images")
    (root / "masks").mkdir()
    for path in (scenes / "annotations/training").iterdir():
        shutil.copy(path, root / "masks" / f"{path.stem}_mask.png")


DETECTION = {
    "COCO": coco,
    "Roboflow": roboflow,
    "one file": one_file,
    "YOLO": yolo,
    "Pascal VOC": voc,
    "LabelMe": labelme,
}
SEGMENTATION = {"label maps": label_maps, "flat": flat_label_maps}
