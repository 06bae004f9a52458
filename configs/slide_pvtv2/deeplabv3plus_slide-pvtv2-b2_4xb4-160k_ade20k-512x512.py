_base_ = "../_base_/recipes/deeplabv3plus_4xb4-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(type="SlidePVTv2", arch="b2"),
    decode_head=dict(in_channels=512, c1_in_channels=64),
    auxiliary_head=dict(in_channels=320),
)
