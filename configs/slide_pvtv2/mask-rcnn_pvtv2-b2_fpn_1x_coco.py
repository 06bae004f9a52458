_base_ = "./mask-rcnn_slide-pvtv2-b2_fpn_1x_coco.py"
model = dict(backbone=dict(slide_stages=()))
