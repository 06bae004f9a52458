_base_ = "./mask-rcnn_slide-pvt-m_fpn_1x_coco.py"
model = dict(backbone=dict(slide_stages=()))
