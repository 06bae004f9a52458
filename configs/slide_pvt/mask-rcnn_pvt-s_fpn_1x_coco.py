_base_ = "./mask-rcnn_slide-pvt-s_fpn_1x_coco.py"
model = dict(backbone=dict(slide_stages=()))
