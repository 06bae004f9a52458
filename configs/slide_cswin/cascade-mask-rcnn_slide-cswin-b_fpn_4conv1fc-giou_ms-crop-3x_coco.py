_base_ = "./cascade-mask-rcnn_slide-cswin-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="base"), neck=dict(in_channels=[96, 192, 384, 768]))
