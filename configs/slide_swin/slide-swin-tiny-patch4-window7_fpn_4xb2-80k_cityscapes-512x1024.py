_base_ = [
    "../_base_/recipes/fpn_4xb2-80k_cityscapes-512x1024.py",
    "../_base_/backbones/slide_swin.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
