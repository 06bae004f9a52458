# Semantic FPN for 80k iterations at a batch of 8: half of PVT's learning rate at a quarter of its
# batch.
_base_ = [
    "../models/semantic_fpn.py",
    "../datasets/cityscapes.py",
    "../schedules/semantic_fpn_40k.py",
    "../mmseg_runtime.py",
    "../slide_mm.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=19),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
auto_scale_lr = dict(base_batch_size=8)
