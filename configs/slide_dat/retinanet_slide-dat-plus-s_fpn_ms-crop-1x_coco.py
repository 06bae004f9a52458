_base_ = "./retinanet_slide-dat-plus-t_fpn_ms-crop-1x_coco.py"
model = dict(
    backbone=dict(arch="plus_small", drop_path_rate=0.1),
    neck=dict(in_channels=[192, 384, 768]),
)
