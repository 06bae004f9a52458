# SegFormer's recipe: 160k iterations at a batch of 16, the head at ten times the rate.
_base_ = [
    "../models/segformer.py",
    "../datasets/ade20k.py",
    "../schedules/upernet_160k.py",
    "../mmseg_runtime.py",
    "../slide_mm.py",
]
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))))
default_hooks = dict(checkpoint=dict(interval=16000))
