# MMSegmentation's Mask2Former: 160k iterations at a batch of 16, the backbone at a tenth of
# the learning rate.
_base_ = [
    "../models/mask2former.py",
    "../datasets/ade20k.py",
    "../schedules/upernet_160k.py",
    "../mmseg_runtime.py",
]
model = dict(backbone=dict(drop_path_rate=0.3))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            **{key: dict(lr_mult=0.1) for key in _base_.no_decay},
            **{key: dict(decay_mult=0.0) for key in ("query_embed", "query_feat", "level_embed")},
        },
    ),
)
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, end=160000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=16000))
