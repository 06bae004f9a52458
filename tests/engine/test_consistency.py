import random
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader

from slide_mm.engine.config import drop_worker_options, load_config, type_name
from slide_mm.engine.consistency import (
    compare_classes,
    find_inconsistencies,
    find_unused_parameters,
)
from slide_mm.engine.distributed import find_unused_for_ddp
from slide_mm.engine.preflight import check_model, image_channels

CONFIGS = Path(__file__).parents[1] / "tools" / "configs"
SPLITS = ("train", "val", "test")
RETINANET = {
    "model.type": "RetinaNet",
    "model.bbox_head": dict(
        type="RetinaHead",
        num_classes=10,
        in_channels=16,
        stacked_convs=1,
        feat_channels=16,
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
    ),
    "model.neck.add_extra_convs": "on_input",
}


def build(base, options):
    cfg = load_config(CONFIGS / f"{base}.py", options)
    if options.get("model.type") == "RetinaNet":
        del cfg.model["rpn_head"], cfg.model["roi_head"]
        cfg.model.train_cfg = cfg.model.test_cfg = None
    return cfg, check_model(cfg, pretrained=False)


def lines(base, options):
    return list(find_inconsistencies(*build(base, options), SPLITS))


@pytest.mark.parametrize("base", ["mask_rcnn", "semantic_fpn"])
def test_what_agrees(base):
    assert lines(base, {}) == []


@pytest.mark.parametrize(
    ("base", "heads"),
    [
        ("mask_rcnn", ("roi_head.bbox_head", "roi_head.mask_head")),
        ("semantic_fpn", ("decode_head",)),
    ],
)
def test_classes_of_every_head(base, heads):
    rng = random.Random(0)
    right = {"mask_rcnn": 10, "semantic_fpn": 11}[base]
    for _ in range(4):
        numbers = {head: rng.choice([right, rng.randint(1, 20)]) for head in heads}
        found = lines(base, {f"model.{head}.num_classes": n for head, n in numbers.items()})
        wrong = {head: n for head, n in numbers.items() if n != right}
        assert len(found) == len(wrong)
        for line, (head, number) in zip(found, wrong.items(), strict=True):
            assert f"model.{head}.num_classes is {number}, and the dataset has {right}" in line


def heads_of(**modules):
    """A model whose only parts are heads with these attributes."""
    model = nn.Module()
    for name, attributes in modules.items():
        head = nn.Module()
        head.__dict__.update(attributes)
        model.add_module(name, head)
    return model


@pytest.mark.parametrize(
    ("meta", "modules", "wrong"),
    [
        # Panoptic: things and stuff are counted apart.
        (dict(things=3, stuff=2), dict(bbox_head=dict(num_classes=3)), None),
        (dict(things=3, stuff=2), dict(bbox_head=dict(num_classes=5)), "num_classes is 5"),
        (
            dict(things=3, stuff=2),
            dict(panoptic_head=dict(num_classes=5, num_things_classes=2, num_stuff_classes=2)),
            "num_things_classes is 2",
        ),
        (
            dict(things=3, stuff=2),
            dict(semantic_head=dict(num_classes=3, num_things_classes=3, num_stuff_classes=1)),
            "num_stuff_classes is 1",
        ),
        # One output channel says yes or no.
        (dict(things=2), dict(decode_head=dict(num_classes=2, out_channels=1)), None),
        (dict(things=2), dict(decode_head=dict(num_classes=1, out_channels=1)), None),
        (dict(things=4), dict(decode_head=dict(num_classes=2, out_channels=1)), "num_classes is 2"),
        # Others count something else.
        (dict(things=2), dict(rpn_head=dict(num_classes=1)), None),
        (dict(things=2), dict(mask_head=dict(num_classes=80, class_agnostic=True)), None),
    ],
)
def test_classes_of_special_heads(meta, modules, wrong):
    names = [str(i) for i in range(meta["things"] + meta.get("stuff", 0))]
    metainfo = dict(classes=names)
    if "stuff" in meta:
        metainfo |= dict(
            thing_classes=names[: meta["things"]], stuff_classes=names[meta["things"] :]
        )
    dataset = dict(type="mmdet.CocoDataset", data_root="nowhere", metainfo=metainfo)
    cfg = Config(dict(train_dataloader=dict(dataset=dataset), default_scope="mmdet"))
    found = list(compare_classes(cfg, heads_of(**modules), ("train",)))
    assert (wrong in found[0]) if wrong else not found


def test_classes_that_are_a_text():
    line, *_ = lines("mask_rcnn", {"train_dataloader.dataset.metainfo.classes": "apple"})
    assert "metainfo.classes is the text 'apple'" in line


@pytest.mark.parametrize("base", ["mask_rcnn", "semantic_fpn"])
def test_channels_of_the_neck(base):
    rng = random.Random(0)
    for _ in range(3):
        wrong = [rng.choice([4, 8, 16, 32]) for _ in range(rng.choice([3, 4]))]
        if wrong != [8, 16, 16, 32]:
            (line,) = lines(base, {"model.neck.in_channels": wrong})
            assert f"model.neck.in_channels is {wrong}" in line
            assert "[8, 16, 16, 32] channels" in line


def test_channels_and_indices_of_a_decoder():
    narrow = {"model.decode_head.in_channels": [16, 16, 16, 8]}
    assert "[16, 16, 16, 16] channels" in lines("semantic_fpn", narrow)[0]
    beyond = {"model.decode_head.in_index": [0, 1, 2, 4]}
    assert "there are 4 maps" in lines("semantic_fpn", beyond)[0]


@pytest.mark.parametrize(
    ("out_indices", "in_channels", "start_level", "strides"),
    [
        ((1, 2, 3), [16, 16, 32], 0, None),
        ((0, 1, 2, 3), [8, 16, 16, 32], 1, None),
        ((0, 1, 2, 3), [8, 16, 16, 32], 0, [4, 8, 16, 32, 64]),
        ((2, 3), [16, 32], 0, [16, 32, 64, 128, 256]),
    ],
)
def test_strides_of_anchors(out_indices, in_channels, start_level, strides):
    neck = {"model.neck.in_channels": in_channels, "model.neck.start_level": start_level}
    found = lines("mask_rcnn", {**RETINANET, **neck, "model.backbone.out_indices": out_indices})
    assert len(found) == (strides is not None)
    if strides:
        assert "model.bbox_head is made for maps of the strides [8, 16, 32, 64, 128]" in found[0]
        assert f"have {strides}" in found[0]


def test_strides_of_regions():
    wrong = {"model.roi_head.bbox_roi_extractor.featmap_strides": [8, 16, 32, 64]}
    (line,) = lines("mask_rcnn", wrong)
    assert (
        "model.roi_head.bbox_roi_extractor is made for maps of the strides [8, 16, 32, 64]" in line
    )


@pytest.mark.parametrize("in_dataset", [True, False, None])
@pytest.mark.parametrize("in_pipeline", [True, False, None])
def test_label_0_in_dataset_and_pipeline(in_dataset, in_pipeline):
    cfg, model = build("semantic_fpn", {})
    dataset = cfg.train_dataloader.dataset
    for node, value in ((dataset, in_dataset), (dataset.pipeline[1], in_pipeline)):
        if value is not None:
            node.reduce_zero_label = value
    found = list(find_inconsistencies(cfg, model, ("train",)))
    agree = in_pipeline is None or in_pipeline == bool(in_dataset)
    assert len(found) == (not agree)
    assert agree or "reduce_zero_label" in found[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim_wrapper.optimizer.type", "AdamWW"),
        ("train_cfg.val_interval", 0),
        ("train_cfg.val_interval", "1"),
        ("train_cfg.val_begin", None),
        ("default_hooks.checkpoint.interval", "1"),
    ],
)
def test_what_would_come_out_late(key, value):
    (line,) = lines("semantic_fpn", {key: value})
    assert key in line
    assert repr(value) in line


class TestUnusedParameters:
    """A norm of an output that nobody looks at gets no gradient."""

    @pytest.mark.parametrize(("start_level", "unused"), [(0, False), (1, True)])
    def test_of_detectors(self, start_level, unused):
        swin = {
            "model.backbone": dict(
                _delete_=True,
                type="SlideSwin",
                arch=dict(embed_dims=(8, 16, 16, 32), depths=(1,) * 4, num_heads=(1, 2, 2, 4)),
            ),
            "model.neck.start_level": start_level,
        }
        _, model = build("mask_rcnn", RETINANET | swin)
        found = find_unused_parameters(model)
        expected = {"backbone.out_norms.0.weight", "backbone.out_norms.0.bias"} if unused else set()
        assert set(found) >= expected
        assert bool(found) == unused
        assert all(parameter.grad is None for parameter in model.parameters())
        wrapper = dict(type="MMDistributedDataParallel")
        for launcher, wrapped in (("none", wrapper), ("pytorch", None), ("pytorch", wrapper)):
            run = Config(dict(launcher=launcher, model_wrapper_cfg=wrapped))
            find_unused_for_ddp(run, model)
            for node in (run, run.model_wrapper_cfg or run):
                told = node.get("find_unused_parameters", False)
                assert told == (unused and launcher == "pytorch")

    def test_of_segmentors(self):
        _, model = build("semantic_fpn", {})
        assert find_unused_parameters(model) == []
        for indices in ([1, 2, 3], [-3, -2, -1]):
            model.decode_head.in_index = indices
            unused = find_unused_parameters(model)
            parts = {name.rpartition(".conv.")[0] for name in unused}
            assert parts == {"neck.lateral_convs.0", "neck.fpn_convs.0"}
        for part in parts:  # What is frozen waits for no gradient.
            model.get_submodule(part).requires_grad_(False)
        assert find_unused_parameters(model) == []
        assert find_unused_parameters(model.requires_grad_(False)) == []


def test_channels_of_images():
    _, model = build("semantic_fpn", {"model.backbone.in_channels": 1})
    assert image_channels(model) == 1
    del model.backbone
    assert image_channels(model) == 3
    model.data_preprocessor.mean = torch.zeros(4, 1, 1)
    assert image_channels(model) == 4


@pytest.mark.parametrize("options", [{}, dict(num_workers=0), dict(num_workers=1)])
def test_loaders_with_and_without_processes(options):
    options = {**options, "persistent_workers": True, "prefetch_factor": 3}
    cfg = Config({f"{split}_dataloader": dict(options) for split in SPLITS})
    drop_worker_options(cfg)
    for split in SPLITS:
        loader = DataLoader([1, 2], **cfg[f"{split}_dataloader"])
        assert loader.persistent_workers == bool(options.get("num_workers"))


def test_types_by_name_and_by_class():
    assert type_name(dict(type="mmdet.CocoDataset")) == "CocoDataset"
    assert type_name(dict(type=nn.Linear)) == "Linear"
    assert type_name(dict(other=1)) == type_name(3) == ""
