"""A Semantic FPN that trains in seconds, on demo scenes in data_root."""

_base_ = [
    "../../../configs/_base_/slide_mm.py",
    "../../../configs/_base_/mmseg_runtime.py",
    "../../../configs/_base_/models/semantic_fpn.py",
]

classes = ("background", *"0123456789")

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        type="SlidePVTv2",
        arch=dict(
            embed_dims=(8, 16, 16, 32),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2, 2, 2, 2),
            sr_ratios=(8, 4, 2, 1),
        ),
    ),
    neck=dict(in_channels=[8, 16, 16, 32], out_channels=16),
    decode_head=dict(in_channels=[16, 16, 16, 16], channels=16, num_classes=11),
)

pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_root="no-such-folder",
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BaseSegDataset",
        data_root="no-such-folder",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=3, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
randomness = dict(seed=0)
