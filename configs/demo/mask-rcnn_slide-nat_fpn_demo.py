# NAT, as wide and deep as the demo's PVTv2-B0, for a shorter training.
_base_ = "./mask-rcnn_slide-pvtv2-b0_fpn_demo.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="SlideNAT",
        arch=dict(
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            mlp_ratios=(3, 3, 3, 3),
        ),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
train_cfg = dict(max_iters=600, val_interval=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=50, end=600),
]
