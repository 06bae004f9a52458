_base_ = "../_base_/recipes/mask2former_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(type="SlidePVTv2", arch="b2"), decode_head=dict(in_channels=[64, 128, 320, 512])
)
