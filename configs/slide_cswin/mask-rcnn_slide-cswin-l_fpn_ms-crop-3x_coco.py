_base_ = "./mask-rcnn_slide-cswin-t_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="large"), neck=dict(in_channels=[144, 288, 576, 1152]))
