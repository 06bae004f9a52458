_base_ = [
    "../_base_/recipes/fpn_8xb4-40k_ade20k-512x512.py",
    "../_base_/backbones/slide_cswin.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
