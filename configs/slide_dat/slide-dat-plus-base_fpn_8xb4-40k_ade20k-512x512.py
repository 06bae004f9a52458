_base_ = "./slide-dat-plus-tiny_fpn_8xb4-40k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="plus_base", drop_path_rate=0.7),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
