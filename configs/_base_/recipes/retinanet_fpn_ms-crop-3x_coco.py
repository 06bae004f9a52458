# DAT++'s recipe for RetinaNet: 36 epochs at a batch of 16, short sides of 480 to 800, and crops.
# The authors' learning rate is 2e-4 at a batch of 64.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../datasets/coco_tta.py",
    "../no_decay.py",
    "../slide_mm.py",
]
# A stage that the neck passes over isn't returned.
model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(start_level=0),
)
sides = dict(
    type="RandomChoiceResize",
    scales=[(side, 1333) for side in range(480, 801, 32)],
    keep_ratio=True,
)
crops = [
    dict(
        type="RandomChoiceResize",
        scales=[(400, 1333), (500, 1333), (600, 1333)],
        keep_ratio=True,
    ),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
]
train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoice", transforms=[[sides], [*crops, sides]]),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-5, weight_decay=0.05),
)
