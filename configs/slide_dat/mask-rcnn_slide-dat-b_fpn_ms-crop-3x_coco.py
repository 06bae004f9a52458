_base_ = "./mask-rcnn_slide-dat-t_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="base"), neck=dict(in_channels=[128, 256, 512, 1024]))
