import numpy as np
import pytest
from PIL import Image

from slide_mm.engine import ConfigError
from slide_mm.new_config.segmentation import find_segmentation

STEMS = ("1", "2", "10", "1.z", "test 1", "übung")


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def make(root, images="images", labels="masks", image=".jpg", label=".png", numbers=(0, 1, 255)):
    for stem in STEMS:
        save(root / images / f"{stem}{image}", np.zeros((8, 8, 3), np.uint8))
        values = np.resize(np.array(numbers, np.uint8), (8, 8))
        save(root / labels / f"{stem}{label}", values)


def list_pairs(split):
    """As BaseSegDataset finds them."""
    if split.listed:
        names = split.listed.read_text(encoding="utf-8").splitlines()
    else:
        found = split.images.rglob(f"*{split.image_suffix}")
        names = [x.relative_to(split.images).as_posix() for x in found]
        names = [name.removesuffix(split.image_suffix) for name in names]
    assert sorted(names) == sorted(split.names)
    for name in names:
        assert (split.images / f"{name}{split.image_suffix}").is_file()
        assert (split.labels / f"{name}{split.label_suffix}").is_file()
    return sorted(names)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/train", "labels/train"), ("images/val", "labels/val")),
        (("train/images", "train/masks"), ("valid/images", "valid/masks")),
        (("train", "trainannot"), ("val", "valannot")),
        (("train", "train_labels"), ("val", "val_labels")),
        (("img_dir/train", "ann_dir/train_labels"), ("img_dir/val", "ann_dir/val_labels")),
        (
            ("segmentation/Train/images", "segmentation/Train/gt"),
            ("segmentation/Val/images", "segmentation/Val/gt"),
        ),
        (("washington/train", "washington/train_GT"), ("washington/val", "washington/val_GT")),
        (("images/train", "masks"), ("images/val", "masks")),
        (("train", "train/masks"), ("val", "val/masks")),
        (
            ("images/training/a/b", "labels/training/a/b"),
            ("images/validation", "labels/validation"),
        ),
    ],
)
@pytest.mark.parametrize("endings", [(".jpg", ".png"), (".png", ".png"), (".JPG", "_mask.PNG")])
def test_folders_of_splits(train, val, endings, tmp_path):
    for images, labels in (train, val):
        make(tmp_path, images, labels, *endings)
    found = find_segmentation(tmp_path, seed=0)
    assert found.classes == ("class 0", "class 1")
    for name, (images, _) in {"train": train, "val": val}.items():
        inner = "a/b/" if "/a/b" in images else ""
        assert list_pairs(found.splits[name]) == sorted(f"{inner}{stem}" for stem in STEMS)


def test_folders_of_one_split_lie_together(tmp_path):
    for part in ("red", "green"):
        make(tmp_path, f"images/train/{part}", f"labels/train/{part}")
    make(tmp_path, "images/val", "labels/val")
    split = find_segmentation(tmp_path, seed=0).splits["train"]
    assert split.images == tmp_path / "images/train"
    assert list_pairs(split) == sorted(f"{part}/{x}" for part in ("red", "green") for x in STEMS)


def test_a_part_is_drawn(tmp_path):
    make(tmp_path)
    drawn = []
    for seed in (0, 0, 1, 2):
        splits = find_segmentation(tmp_path, seed).splits
        train, val = list_pairs(splits["train"]), list_pairs(splits["val"])
        assert sorted(train + val) == sorted(STEMS)
        assert len(val) == 1
        drawn.append(val)
    assert drawn[0] == drawn[1]
    assert len({*map(str, drawn)}) > 1


def test_pascal_voc(tmp_path):
    """Lists, maps of objects beside those of classes, and images without a map."""
    make(tmp_path, "JPEGImages", "SegmentationClass", numbers=(0, 1, 2))
    make(tmp_path, "JPEGImages", "SegmentationObject", numbers=(0, 7, 9))
    make(tmp_path, "JPEGImages", "SegmentationClassVisualization", label=".jpg")
    save(tmp_path / "JPEGImages/0.jpg", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "class_names.txt").write_text("_background_\npear\nplum\n")
    for folder, lists in {
        "Main": ("0", "1"),
        "Segmentation": ("1\n2\n10\n1.z", "test 1\nübung"),
    }.items():
        path = tmp_path / "ImageSets" / folder
        path.mkdir(parents=True)
        for name, text in zip(("train", "val"), lists, strict=True):
            (path / f"{name}.txt").write_text(text, encoding="utf-8")
    found = find_segmentation(tmp_path, seed=0)
    assert found.classes == ("_background_", "pear", "plum")
    assert list_pairs(found.splits["train"]) == ["1", "1.z", "10", "2"]
    assert list_pairs(found.splits["val"]) == ["test 1", "übung"]
    assert found.splits["val"].labels == tmp_path / "SegmentationClass"


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_maps_of_any_numbers_of_one_channel(mode, tmp_path):
    make(tmp_path, numbers=(0, 1))
    for path in (tmp_path / "masks").iterdir():
        values = np.resize(np.array([0, 1], np.uint8), (8, 8))
        if mode == "P":
            image = Image.fromarray(values, "L").convert("P")
            image = Image.frombytes("P", (8, 8), values.tobytes())
            image.putpalette([0, 0, 0, 255, 0, 0])
        elif mode == "1":
            image = Image.fromarray(values.astype(bool))
        else:
            image = Image.fromarray(values.astype({"L": np.uint8, "I;16": np.uint16}[mode]))
        image.save(path)
    assert find_segmentation(tmp_path, seed=0).classes == ("class 0", "class 1")


def test_names_of_a_yaml_file(tmp_path):
    make(tmp_path, numbers=(1, 2, 255))
    (tmp_path / "data.yaml").write_text("names: {0: soil, 2: pear, 3: plum}")
    assert find_segmentation(tmp_path, seed=0).classes == ("soil", "class 1", "pear", "plum")


def only_images(root):
    save(root / "images/1.png", np.zeros((8, 8, 3), np.uint8))


def only_labels(root):
    save(root / "masks/1.png", np.zeros((8, 8), np.uint8))


def two_endings(root):
    make(root)
    make(root, image=".png")


def endings_by_split(root):
    for split in ("train", "train/more"):
        make(root, f"images/{split}", f"masks/{split}", image=".png" if "more" in split else ".jpg")


def other_names(root):
    make(root)
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))


def one_missing(root):
    make(root)
    (root / "masks/2.png").unlink()


def first_missing(root):
    make(root)
    (root / "masks/1.png").unlink()
    (root / "masks/1.z.png").unlink()


def maps_of_training_alone(root):
    make(root, "images/train", "masks/train")
    make(root, "images/val", "masks/train")


def two_folders_of_maps(root):
    make(root)
    make(root, labels="labels")


def two_folders_of_images(root):
    make(root, "a/images", "a/masks")
    make(root, "b/images", "b/masks")


def only_validation(root):
    make(root, "images/val", "masks/val")


def colors(root):
    make(root)
    save(root / "masks/2.png", np.zeros((8, 8, 3), np.uint8))


def large(root):
    make(root)
    save(root / "masks/2.png", np.full((8, 8), 300, np.uint16))


def too_few_names(root):
    make(root, numbers=(0, 1, 2))
    (root / "classes.txt").write_text("soil\npear\n")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "has no images with label maps: looked for .* found nothing"),
        (only_images, "has no images with label maps: .* or gt in their names, found images"),
        (only_labels, "has no images with label maps: .* found masks"),
        (two_endings, "images has images that end in .jpg and .png: make it one"),
        (endings_by_split, "has images or label maps of several endings"),
        (other_names, "has no label map: looked for 1 with another end in .*masks"),
        (one_missing, "2.jpg has no label map: .*2.png does not exist"),
        (first_missing, "1.jpg has no label map: looked for 1 with another end in .*masks"),
        (maps_of_training_alone, "val/1.jpg has no label map: looked for 1 with .* in folders of"),
        (two_folders_of_maps, "label maps of .*images may be those in .*: leave one"),
        (two_folders_of_images, "has images of no split in a/images and b/images: leave one"),
        (only_validation, "has no images to train on: say train in a folder's name"),
        (colors, r"2.png has shape \(8, 8, 3\)"),
        (large, "2.png has shape .* numbers up to 300"),
        (lambda root: make(root, label=".jpg"), "is a JPEG, which changes numbers"),
        (lambda root: make(root, numbers=(0, 255)), "have the number 0 alone, besides 255"),
        (lambda root: make(root, numbers=(255,)), "have the number None alone"),
        (lambda root: make(root, numbers=(0, 50, 100)), "have 3 numbers, up to 100: number"),
        (too_few_names, "have the number 2, and its file of names 2 names, for 0 to 1"),
    ],
)
def test_wrong_folders_are_told_in_a_line(prepare, message, tmp_path):
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        find_segmentation(tmp_path, seed=0)
    assert "\n" not in str(error.value)
