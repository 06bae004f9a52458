_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "./_base_/scenes.py",
]
roi_layer = dict(sampling_ratio=2)
model = dict(
    backbone=dict(_delete_=True, type="SlidePVTv2", arch="b0", drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=roi_layer),
        bbox_head=dict(
            in_channels=64, fc_out_channels=256, num_classes=10, reg_class_agnostic=True
        ),
        mask_roi_extractor=dict(out_channels=64, roi_layer=roi_layer),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)

metainfo = dict(classes=_base_.digits, palette=_base_.digits_palette)
# No flips: they change digits.
train_dataloader = dict(
    dataset=dict(
        type="CocoDataset",
        metainfo=metainfo,
        ann_file="annotations/instances_training.json",
        data_prefix=dict(img="images/training/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomCrop", crop_size=(224, 224)),
            dict(type="PackDetInputs"),
        ],
    )
)
val_dataloader = dict(
    dataset=dict(
        type="CocoDataset",
        metainfo=metainfo,
        ann_file="annotations/instances_validation.json",
        data_prefix=dict(img="images/validation/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            # Sets scale_factor, which testing needs.
            dict(type="Resize", scale=(256, 256)),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    metric=["bbox", "segm"],
    ann_file=_base_.data_root + "annotations/instances_validation.json",
)
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1100, val_interval=275)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=50, end=1100),
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=275, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False, window_size=20)
