_base_ = [
    "../models/upernet.py",
    "../datasets/ade20k.py",
    "../schedules/upernet_160k.py",
    "../mmseg_runtime.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(drop_path_rate=0.3))
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(interval=16000))
