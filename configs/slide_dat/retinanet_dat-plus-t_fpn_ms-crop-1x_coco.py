_base_ = "./retinanet_slide-dat-plus-t_fpn_ms-crop-1x_coco.py"
model = dict(backbone=dict(slide_stages=()))
