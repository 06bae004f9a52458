_base_ = "./cascade-mask-rcnn_slide-dat-plus-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(
    backbone=dict(arch="plus_base", drop_path_rate=0.8),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
