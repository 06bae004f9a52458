"""MMDetection's DINO on a Slide backbone: the demo's scenes, and small enough for a CPU."""

_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["slide_mm"], allow_failed_imports=False)

# The backbone.
model = dict(
    backbone=dict(_delete_=True, type="SlidePVTv2", arch="b0", out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 160, 256]),
    # The size.
    num_queries=100,
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    decoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    bbox_head=dict(num_classes=10),
    test_cfg=dict(max_per_img=100),
)
# No pretrained backbone, so it learns as fast as the rest.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0)))
)

# The data.
data_root = "data/demo_scenes/"
metainfo = dict(classes=tuple("0123456789"))
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/instances_training.json",
        data_prefix=dict(img="images/training/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="RandomCrop", crop_size=(224, 224)),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/instances_validation.json",
        data_prefix=dict(img="images/validation/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(256, 256)),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_validation.json")
test_evaluator = val_evaluator
