_base_ = [
    "../_base_/recipes/upernet_8xb2-160k_ade20k-512x512.py",
    "../_base_/backbones/slide_nat.py",
]
model = dict(
    backbone=dict(drop_path_rate=0.2, **_base_.backbone),
    decode_head=dict(in_channels=_base_.embed_dims),
    auxiliary_head=dict(in_channels=_base_.embed_dims[2]),
)
