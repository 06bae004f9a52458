_base_ = "./mask-rcnn_slide-nat-mini_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="tiny"))
