"""Pascal VOC's annotations: an XML file an image, with boxes."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import ImageFinder, iter_files, read_lists, split_of, stem_of
from slide_mm.new_config.objects import AnnotatedImage, AnnotatedObject, size_of


def read_voc(root: Path) -> list[AnnotatedImage]:
    """Read boxes.

    Splits are those of the lists in ``ImageSets/Main``, or else names of folders.

    Raises:
        ConfigError: If a file cannot be read, or its image is nowhere.
    """
    files = list(iter_files(root, {".xml"}))
    finder, listed = ImageFinder(root) if files else None, read_lists(root, "Main")
    images = (_read_image(file, root, finder, listed) for file in files)
    return [image for image in images if image]


def _read_image(
    file: Path, root: Path, finder: ImageFinder, listed: Mapping[str, str]
) -> AnnotatedImage | None:
    try:
        content = ElementTree.parse(file).getroot()
        if content.tag != "annotation":
            return None
        objects = [_read_object(node) for node in content.iter("object")]
    except (ElementTree.ParseError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{file} is no annotation of Pascal VOC: {error}") from error
    name = content.findtext("filename") or file.stem
    path = finder.find(file, name)
    if path is None:
        raise ConfigError(f"{file} is of the image {name}, which is nowhere in {root}: add it")
    split = listed.get(stem_of(path.name)) or split_of(file.parent, root)
    return AnnotatedImage(path, size_of(path), split or split_of(path.parent, root), objects)


def _read_object(node: ElementTree.Element) -> AnnotatedObject:
    box = node.find("bndbox")
    left, top, right, bottom = (
        float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    name, ignored = node.findtext("name").strip(), node.findtext("difficult", "0").strip() == "1"
    return AnnotatedObject(name, (left, top, right - left, bottom - top), ignored=ignored)
