# DAT as wide and deep as the demo's PVTv2-B0.
_base_ = "./_base_/short_mask-rcnn.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="SlideDAT",
        arch=dict(
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            num_groups=(1, 1, 2, 4),
        ),
        drop_path_rate=0.0,
    ),
)
