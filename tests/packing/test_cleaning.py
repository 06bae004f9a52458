import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config

from slide_mm.engine.plain_config import read_plain_config, read_values
from slide_mm.engine.reporting import ConfigError
from slide_mm.packing.cleaning import clean_config

HOME = "/home/hannah"


def clean(**values):
    return Config(read_values(clean_config(Config({"model": {}, **values}))))


def loader(**dataset):
    return dict(batch_size=1, dataset=dict(type="CocoDataset", **dataset))


def test_what_belongs_to_the_machine_is_left_out():
    backends = [dict(type="LocalVisBackend"), dict(type="WandbVisBackend", init_kwargs=HOME)]
    checkpoint = dict(type="CheckpointHook", interval=2, out_dir=f"{HOME}/out")
    pretrained = dict(type="Pretrained", checkpoint=f"{HOME}/swin.pth")
    cleaned = clean(
        work_dir=f"{HOME}/runs",
        load_from=f"{HOME}/a.pth",
        resume=True,
        launcher="slurm",
        experiment_name="hannah",
        my_folder=HOME,
        default_scope="mmdet",
        visualizer=dict(type="DetLocalVisualizer", vis_backends=backends, save_dir=HOME),
        default_hooks=dict(checkpoint=checkpoint, sampler_seed=None, mine=dict(type="Mine")),
        custom_hooks=[
            dict(type="Upload", user="hannah"),
            dict(type="EMAHook"),
            dict(type="PipelineSwitchHook", switch_epoch=2, switch_pipeline=[]),
        ],
        model=dict(
            type="MaskRCNN",
            pretrained="torchvision://resnet50",
            backbone=dict(init_cfg=pretrained),
            neck=dict(init_cfg=[pretrained, dict(type="Xavier")]),
            rpn_head=dict(init_cfg=dict(type="Normal")),
        ),
    )
    assert cleaned.to_dict() == dict(
        default_scope="mmdet",
        visualizer=dict(type="DetLocalVisualizer", vis_backends=backends[:1]),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=2), sampler_seed=None),
        custom_hooks=[
            dict(type="EMAHook"),
            dict(type="PipelineSwitchHook", switch_epoch=2, switch_pipeline=[]),
        ],
        model=dict(
            type="MaskRCNN",
            pretrained=None,
            backbone=dict(init_cfg=None),
            neck=dict(init_cfg=[dict(type="Xavier")]),
            rpn_head=dict(init_cfg=dict(type="Normal")),
        ),
    )


def test_paths_of_data_that_others_do_not_have():
    coco, others = f"{HOME}/coco/", "../others"
    names = dict(classes=("a", "/b"))
    cleaned = clean(
        train_dataloader=loader(
            data_root=coco,
            ann_file="annotations/a.json",
            metainfo=names,
            pipeline=[dict(type="Load", backend_args=dict(backend="petrel"))],
        ),
        val_dataloader=loader(data_root=others, data_prefix=dict(img=f"{HOME}/coco/val/")),
        val_evaluator=dict(
            type="CocoMetric",
            ann_file=f"{HOME}/coco/annotations/b.json",
            outfile_prefix=f"{HOME}/results",
        ),
        test_dataloader=loader(data_root="s3://team/hannah/coco", ann_file="data/mine.json"),
        test_evaluator=[dict(type="CocoMetric", ann_file=f"{HOME}/more/c.json")],
    )
    assert cleaned.train_dataloader.dataset == dict(
        type="CocoDataset",
        data_root="data/",
        ann_file="annotations/a.json",
        metainfo=names,
        pipeline=[dict(type="Load")],
    )
    assert cleaned.val_dataloader.dataset.data_root == "data_2/"
    assert cleaned.val_dataloader.dataset.data_prefix.img == "data/val/"
    assert cleaned.val_evaluator == dict(type="CocoMetric", ann_file="data/annotations/b.json")
    assert cleaned.test_dataloader.dataset.data_root == "data_3/"
    assert cleaned.test_dataloader.dataset.ann_file == "data/mine.json"
    assert cleaned.test_evaluator[0].ann_file == "data_4/c.json"


@pytest.mark.parametrize("path", [f"{HOME}/a.json", "~/a.json", "C:\\a.json", "a/../../a.json"])
def test_other_paths_are_refused(path):
    for head in (dict(weights=path), dict(weights=[0, path]), {path: 1}):
        with pytest.raises(ConfigError, match=r"model\.head.* others don't have"):
            clean(model=dict(head=head))


def test_types_may_be_classes_and_other_objects_are_refused():
    pipeline = [dict(type=LoadImageFromFile)]
    cleaned = clean(test_dataloader=loader(pipeline=pipeline))
    (step,) = cleaned.test_dataloader.dataset.pipeline
    assert step.type == "mmcv.transforms.loading.LoadImageFromFile"
    for value in (object(), float("inf")):
        with pytest.raises(ConfigError, match="cannot be written down"):
            clean(model=dict(value=value))


def test_config_of_others_is_read_and_not_run(tmp_path):
    values = dict(a=[1, (2.5, -3)], b={"x y": None, 3: dict(c="d"), "e": ()}, f={1, 2}, g=True)
    lines = ["a = [1, (2.5, -3)]", "b = dict({'x y': None, 3: dict(c='d'), 'e': ()})"]
    assert read_values("\n".join([*lines, "f = {1, 2}", "g = True"])) == values
    marker = tmp_path / "marker"
    for line in (
        f"a = open({str(marker)!r}, 'w')",
        f"a = [dict(b=open({str(marker)!r}, 'w'))]",
        "import os",
        "a = b = 1",
        "a = dict(**dict(b=1))",
        "a = [",
        "custom_imports = dict(imports=['no_such_module'])",
    ):
        with pytest.raises(ConfigError, match=r"config its_name\.py cannot be read"):
            read_plain_config(line, "its_name.py")
    assert not marker.exists()
