_base_ = "./slide-cswin-tiny_fpn_8xb4-40k_ade20k-512x512.py"
model = dict(backbone=dict(arch="base"), neck=dict(in_channels=[96, 192, 384, 768]))
