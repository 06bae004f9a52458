import os
import random
from io import BytesIO

import mmcv.transforms
import mmdet.datasets.transforms  # noqa: F401
import mmseg.datasets.transforms  # noqa: F401
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS
from PIL import Image

from slide_mm.engine import loading
from slide_mm.engine.loading import MAX_BROKEN_IN_A_ROW, is_broken, tell_broken_files
from slide_mm.engine.reporting import ConfigError

LOAD_IMAGE = dict(type="LoadImageFromFile")


@pytest.fixture
def told(monkeypatch):
    messages = []
    monkeypatch.setattr(loading, "print_log", lambda message, **_: messages.append(message))
    return messages


def build(paths, *steps, split="train", **sample):
    loader = dict(dataset=dict(pipeline=[LOAD_IMAGE, *steps]))
    cfg = Config({f"{split}_dataloader": loader})
    tell_broken_files(cfg)
    dataset = BaseDataset(lazy_init=True, serialize_data=False, pipeline=[])
    dataset.data_list = [dict(sample, img_path=str(path)) for path in paths]
    dataset._fully_initialized = True
    dataset.pipeline = type(dataset.pipeline)(cfg[f"{split}_dataloader"].dataset.pipeline)
    return dataset


def encode(kind="png", size=(8, 8)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def damage(content, rng):
    """A file that no config can make readable."""
    return rng.choice(
        [
            lambda: b"",
            lambda: content[: rng.randint(1, len(content) // 2)],
            lambda: b"no image",
            lambda: bytes(len(content)),
            lambda: content[:20] + bytes(x ^ 0x5A for x in content[20:]),
        ]
    )()


@pytest.mark.parametrize("seed", range(20))
def test_another_image_takes_the_place_of_a_broken_one(seed, tmp_path, told):
    rng = random.Random(seed)
    sound, broken = tmp_path / "sound.png", tmp_path / "broken.png"
    sound.write_bytes(encode())
    if rng.random() < 0.9:  # Or it isn't there.
        broken.write_bytes(damage(encode(rng.choice(("png", "jpeg", "bmp"))), rng))
    dataset = build([sound, broken], dict(type=mmcv.transforms.Resize, scale=(4, 4)))
    sample = dataset[1]
    assert told[0].startswith(f"passing over {broken}: LoadImageFromFile failed")
    assert sample["img_path"] == str(sound)
    assert sample["img"].shape == (4, 4, 3)


WRONG_STEPS = {
    "mask": (dict(type="mmdet.LoadAnnotations", with_mask=True), {}),
    "bbox": (dict(type="mmdet.LoadAnnotations"), {"instances": [{"bbox_label": 0}]}),
    "points": (
        dict(type="mmdet.LoadAnnotations", with_mask=True),
        {"instances": [{"bbox": [0, 0, 4, 4], "bbox_label": 0, "mask": "x", "ignore_flag": 0}]},
    ),
    "bytes": (dict(LOAD_IMAGE, backend_args=dict(backend="nowhere")), {}),
    "backend": (dict(LOAD_IMAGE, imdecode_backend="turbojpeg"), {}),
    "color": (dict(LOAD_IMAGE, color_type="colour"), {}),
    "label map": (dict(type="mmseg.LoadAnnotations", imdecode_backend="nothing"), {}),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_mistakes_of_config_and_annotations_end_the_run(name, tmp_path, told):
    step, sample = WRONG_STEPS[name]
    sample = {"height": 8, "width": 8, "instances": [], "seg_fields": [], **sample}
    sample |= {"reduce_zero_label": False, "seg_map_path": None}
    if name == "mask":
        sample["instances"] = [{"bbox": [0, 0, 4, 4], "bbox_label": 0, "ignore_flag": 0}]
    path, labels = tmp_path / "a.png", tmp_path / "labels.png"
    path.write_bytes(encode())
    labels.write_bytes(encode())
    if name == "label map":
        sample["seg_map_path"] = str(labels)
    dataset = build([path] * 3, step, **sample)
    kind = TRANSFORMS.get(step["type"]).__name__
    with pytest.raises(ConfigError, match=f"{kind} fails on {path}") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)
    assert told == []


def test_one_broken_file_after_the_other_ends_the_run(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(MAX_BROKEN_IN_A_ROW + 1)]
    with pytest.raises(ConfigError, match="one file after the other is broken, 11 now, the last"):
        build(paths)[0]
    paths[0].write_bytes(encode())
    dataset = build(paths)
    load = dataset.pipeline.transforms[0]
    for path in [paths[0], *paths[2:], paths[0], *paths[2:], paths[0]]:
        assert (load({"img_path": str(path)}) is None) == (path != paths[0])


RADIANCE = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 2\n" + bytes([1, 2, 3, 128] * 4)


@pytest.mark.parametrize("content", [encode("jpeg"), encode("pcx"), RADIANCE])
def test_formats_that_one_of_pillow_and_opencv_lacks_are_no_broken_files(
    content, tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Nor are large ones.
    path = tmp_path / "a.pic"
    path.write_bytes(content)
    assert not is_broken(str(path))


def test_pipes_are_broken_files():
    reader, writer = os.pipe()
    os.write(writer, encode())
    os.close(writer)
    assert is_broken(f"/proc/self/fd/{reader}")
    os.close(reader)


@pytest.mark.parametrize("split", ["val", "test"])
def test_testing_passes_over_nothing(split, tmp_path):
    sound, broken = tmp_path / "sound.png", tmp_path / "broken.png"
    sound.write_bytes(encode())
    broken.write_bytes(b"no image")
    dataset = build([sound, broken], split=split)
    assert dataset[0]["img_path"] == str(sound)
    with pytest.raises(ConfigError, match=f"{broken} is broken: LoadImageFromFile failed"):
        dataset[1]
