_base_ = [
    "../_base_/recipes/mask-rcnn_fpn_ms-crop-3x_coco.py",
    "../_base_/backbones/slide_dat.py",
]
model = dict(backbone=_base_.backbone)
