_base_ = [
    "../_base_/recipes/upernet_4xb2-80k_cityscapes-512x1024.py",
    "../_base_/backbones/slide_swin.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.embed_dims),
    auxiliary_head=dict(in_channels=_base_.embed_dims[2]),
)
