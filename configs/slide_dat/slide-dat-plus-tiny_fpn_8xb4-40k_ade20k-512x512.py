_base_ = [
    "../_base_/recipes/fpn_8xb4-40k_ade20k-512x512.py",
    "../_base_/backbones/slide_dat_plus.py",
]
model = dict(
    backbone=dict(drop_path_rate=0.4, **_base_.backbone),
    neck=dict(in_channels=_base_.embed_dims),
)
