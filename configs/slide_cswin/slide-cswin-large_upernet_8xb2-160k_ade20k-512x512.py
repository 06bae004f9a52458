_base_ = "./slide-cswin-tiny_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="large", drop_path_rate=0.6),
    decode_head=dict(in_channels=[144, 288, 576, 1152]),
    auxiliary_head=dict(in_channels=576),
)
