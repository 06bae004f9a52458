_base_ = "./mask-rcnn_slide-cswin-t_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="base"), neck=dict(in_channels=[96, 192, 384, 768]))
