_base_ = "../_base_/recipes/fpn_8xb4-40k_ade20k-512x512.py"
model = dict(
    backbone=dict(type="SlidePVT", arch="tiny"),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
