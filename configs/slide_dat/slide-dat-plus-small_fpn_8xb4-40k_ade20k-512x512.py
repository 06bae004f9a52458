_base_ = "./slide-dat-plus-tiny_fpn_8xb4-40k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="plus_small"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
