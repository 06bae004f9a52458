import logging

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from PIL import Image

from slide_mm.engine.loading import pass_over_broken_files


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "sound.png", tmp_path / "broken.png"]
    Image.new("RGB", (8, 8)).save(paths[0])
    paths[1].write_bytes(paths[0].read_bytes()[:20])
    return paths


def build(images):
    pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(4, 4))]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=pipeline))))
    pass_over_broken_files(cfg)
    dataset = BaseDataset(lazy_init=True, serialize_data=False, pipeline=[])
    dataset.data_list = [dict(img_path=str(path)) for path in images]
    dataset._fully_initialized = True
    dataset.pipeline = type(dataset.pipeline)(cfg.train_dataloader.dataset.pipeline)
    return dataset


def test_another_image_takes_the_place_of_a_broken_one(images, caplog):
    dataset = build(images)
    with caplog.at_level(logging.WARNING):
        sample = dataset[1]
    assert sample["img_path"] == str(images[0])
    assert sample["img"].shape == (4, 4, 3)


def test_testing_is_left_alone():
    pipeline = [dict(type="LoadImageFromFile")]
    loader = dict(dataset=dict(pipeline=pipeline))
    cfg = Config(dict(train_dataloader=loader, test_dataloader=loader))
    pass_over_broken_files(cfg)
    assert cfg.test_dataloader.dataset.pipeline == pipeline
    assert cfg.train_dataloader.dataset.pipeline != pipeline
