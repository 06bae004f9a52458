_base_ = [
    "../models/semantic_fpn.py",
    "../datasets/ade20k.py",
    "../schedules/semantic_fpn_40k.py",
    "../mmseg_runtime.py",
    "../slide_mm.py",
]
train_dataloader = dict(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=4000))
