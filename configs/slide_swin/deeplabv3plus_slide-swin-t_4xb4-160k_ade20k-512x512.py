_base_ = [
    "../_base_/recipes/deeplabv3plus_4xb4-160k_ade20k-512x512.py",
    "../_base_/backbones/slide_swin.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.embed_dims[3], c1_in_channels=_base_.embed_dims[0]),
    auxiliary_head=dict(in_channels=_base_.embed_dims[2]),
)
