_base_ = "../_base_/recipes/fpn_4xb2-80k_cityscapes-512x1024.py"
model = dict(
    backbone=dict(type="SlidePVTv2", arch="b2"), neck=dict(in_channels=[64, 128, 320, 512])
)
