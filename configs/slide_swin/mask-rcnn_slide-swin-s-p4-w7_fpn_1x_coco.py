_base_ = "./mask-rcnn_slide-swin-t-p4-w7_fpn_1x_coco.py"
model = dict(backbone=dict(arch="small"))
