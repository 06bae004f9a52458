_base_ = "./mask-rcnn_slide-dat-plus-t_fpn_ms-crop-3x_coco.py"
model = dict(
    backbone=dict(arch="plus_small", drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
