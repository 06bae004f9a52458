_base_ = [
    "../_base_/recipes/mask-rcnn_fpn_swin-1x_coco.py",
    "../_base_/backbones/slide_swin.py",
]
model = dict(backbone=_base_.backbone)
