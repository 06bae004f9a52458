"""Annotations, images, configs and command lines that go wrong, drawn at random."""

import io
import json
import math
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VALUES: tuple[Any, ...] = (
    *(None, True, "", "a", "../../evil", "0.5", "nan", [], {}, [1], [[]], {"type": "Unknown"}),
    *(0, -1, 1, 0.5, 3.0, 255, 2**31, 2**63, 1e300, math.nan, math.inf, -math.inf),
    *([0, 0, 0, 0], [1, 2, 3], [math.nan] * 4, ["0", "0", "9", "9"], [-50, -50, 9, 9]),
    *([[1, 2, 3, 4]], [["a"] * 6], [[0, 0, 5, 0, 5]], {"size": [64, 64], "counts": [2**31]}),
    *({"size": [2**31, 2**31], "counts": [5, 3]}, {"size": [64, 64], "counts": "@@@@~~"}),
    *({"size": [64, 64], "counts": [-5, 4101]}, {"counts": [1]}, {"size": [8, 8], "counts": [64]}),
)


def damage_annotations(rng: random.Random, coco: dict[str, Any]) -> str:
    """Change one thing in annotations of COCO's format; return what."""
    part = rng.choice(("images", "annotations", "annotations", "annotations", "categories"))
    entries = coco[part]
    entry = rng.choice(entries)
    key = rng.choice(list(entry))
    kind = rng.choice(("set", "set", "set", "drop", "drop everywhere", "twice", "part", "remove"))
    if kind == "set":
        entry[key] = rng.choice(VALUES)
        return f"{part}: {key} = {entry[key]!r}"
    if kind == "drop":
        del entry[key]
    elif kind == "drop everywhere":
        for other in entries:
            other.pop(key, None)
    elif kind == "twice":
        entries.append(dict(entry))
    elif kind == "part":
        coco[part] = rng.choice(VALUES)
        return f"{part} = {coco[part]!r}"
    else:
        entries.remove(entry)
    return f"{part}: {kind} {key}"


def hostile_image(rng: random.Random) -> tuple[str, bytes]:
    """An image file: what it is, and its bytes."""
    pixels = np.random.default_rng(rng.randrange(2**31)).integers(0, 255, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels)
    whole = _encode(image, "JPEG")
    kinds = {
        "sound": whole,
        "empty": b"",
        "text": b"no image",
        "cut": whole[: rng.randrange(1, len(whole))],
        "flipped": _flip(rng, whole),
        "1 x 1": _encode(image.resize((1, 1)), "PNG"),
        "1 x 300": _encode(image.resize((1, 300)), "PNG"),
        "grey": _encode(image.convert("L"), "PNG"),
        "16 bit": _encode(Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), "PNG"),
        "palette": _encode(image.convert("P"), "PNG"),
        "alpha": _encode(image.convert("RGBA"), "PNG"),
        "CMYK": _encode(image.convert("CMYK"), "JPEG"),
        "GIF": _encode(image.convert("P"), "GIF"),
        "float TIFF": _encode(image.convert("F"), "TIFF"),
        "bomb": _png_header(100_000, 100_000),
        "no pixels": _png_header(0, 0),
        "turned": _encode(image.resize((64, 32)), "JPEG", exif=_turned()),
    }
    return rng.choice(list(kinds.items()))


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _flip(rng: random.Random, content: bytes) -> bytes:
    content = bytearray(content)
    for _ in range(5):
        content[rng.randrange(len(content))] ^= 255
    return bytes(content)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*x) for x in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def place_image(rng: random.Random, path: Path) -> str:
    """Put something that is no ordinary image where one is expected; return what."""
    path.unlink(missing_ok=True)
    kind = rng.choice(("file", "file", "file", "file", "fifo", "folder", "loop", "gone"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "file":
        kind, content = hostile_image(rng)
        path.write_bytes(content)
    return kind


def alter_config(rng: random.Random, config: dict[str, Any]) -> str:
    """Change one place of a config, in place; return what."""
    places = list(_places(config, ()))
    path, holder, key = rng.choice(places)
    name = ".".join(map(str, path))
    kind = rng.choice(("set", "set", "drop", "misspell"))
    if kind == "drop":
        del holder[key]
    elif kind == "misspell" and isinstance(holder, dict) and isinstance(key, str):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = rng.choice(VALUES)
        return f"{name} = {holder[key]!r}"
    return f"{kind} {name}"


def _places(node: Any, path: tuple):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield (*path, key), node, key
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def hostile_argument(rng: random.Random, folder: Path) -> str:
    """Something that a person, or a script with a mistake in it, hands to a tool."""
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "text.txt").write_text("text")
    (folder / "list.json").write_text(json.dumps([1, 2]))
    return rng.choice(
        (
            *("", " ", "-", "--", ".", "..", "/", "/dev/null", "/dev/zero", "nowhere", "é ü/ß.py"),
            *("*", "a\nb", "0", "-1", "nan", "1e400", "[1,", "a=b", "=", "type=1", "x" * 5000),
            *(str(folder / name) for name in ("empty", "text.txt", "list.json", "text.txt/below")),
        )
    )
