_base_ = "./mask-rcnn_slide-swin-t-p4-w7_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="small"))
