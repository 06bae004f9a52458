_base_ = "./retinanet_slide-dat-plus-s_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(slide_stages=()))
