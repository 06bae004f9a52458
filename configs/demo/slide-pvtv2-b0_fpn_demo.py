_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/mmseg_runtime.py",
    "./_base_/scenes.py",
]
# Backbone and neck of the demo's detector: from scratch, a segmentor learns little more than
# foreground in this time.
load_from = "work_dirs/demo/detection/iter_1100.pth"
model = dict(
    data_preprocessor=dict(size=(224, 224), test_cfg=dict(size_divisor=32)),
    backbone=dict(type="SlidePVTv2", arch="b0", drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(class_weight=[0.3] + [1.0] * 10),
    ),
)

metainfo = dict(classes=("background", *_base_.digits), palette=[(0, 0, 0), *_base_.digits_palette])
# No flips: they change digits.
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type="BaseSegDataset",
        metainfo=metainfo,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomCrop", crop_size=(224, 224)),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        metainfo=metainfo,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=600, val_interval=150)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=50, end=600),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=150, max_keep_ckpts=2),
)
log_processor = dict(window_size=20)
