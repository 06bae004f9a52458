_base_ = [
    "../_base_/recipes/mask-rcnn_fpn_adamw-1x_coco.py",
    "../_base_/backbones/slide_pvt.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
