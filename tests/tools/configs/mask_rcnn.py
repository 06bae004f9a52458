"""A Mask R-CNN that trains in seconds, on demo scenes in data_root."""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "../../../configs/_base_/slide_mm.py",
]

classes = tuple("0123456789")
norm_cfg = dict(type="SyncBN", requires_grad=True)

model = dict(
    backbone=dict(
        _delete_=True,
        type="SlidePVTv2",
        arch=dict(
            embed_dims=(8, 16, 16, 32),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2, 2, 2, 2),
            sr_ratios=(8, 4, 2, 1),
        ),
    ),
    neck=dict(in_channels=[8, 16, 16, 32], out_channels=16, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=10),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=10),
    ),
)

train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        data_root="no-such-folder",
        ann_file="annotations/instances_training.json",
        data_prefix=dict(img="images/training"),
        metainfo=dict(classes=classes),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root="no-such-folder",
        ann_file="annotations/instances_validation.json",
        data_prefix=dict(img="images/validation"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(64, 64)),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric=["bbox", "segm"])
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=3, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
