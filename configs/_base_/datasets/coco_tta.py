# What --tta does on COCO: three sizes, each upright and mirrored.
tta_model = dict(
    type="DetTTAModel",
    tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
)
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=scale, keep_ratio=True)
                for scale in ((1333, 800), (1066, 640), (2000, 1200))
            ],
            [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations", with_bbox=True)],
            [
                dict(
                    type="PackDetInputs",
                    meta_keys=(
                        *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
                        *("flip", "flip_direction"),
                    ),
                )
            ],
        ],
    ),
]
