# The demo's detector for a shorter training, on backbones that double their channels.
_base_ = "../mask-rcnn_slide-pvtv2-b0_fpn_demo.py"
model = dict(neck=dict(in_channels=[32, 64, 128, 256]))
train_cfg = dict(max_iters=600, val_interval=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=50, end=600),
]
