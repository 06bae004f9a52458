# DeepLabV3+ with an auxiliary FCN on stage 3, for ADE20K's 150 classes. On maps of stride 32,
# dilations a quarter of those for stride 8 look equally far. Stage 2 isn't looked at.
_base_ = "./upernet.py"
model = dict(
    backbone=dict(out_indices=(0, 2, 3)),
    decode_head=dict(
        _delete_=True,
        type="DepthwiseSeparableASPPHead",
        in_index=2,
        channels=512,
        dilations=(1, 3, 6, 9),
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(in_index=1),
)
