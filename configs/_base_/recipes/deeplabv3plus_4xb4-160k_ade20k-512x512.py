# DeepLabV3+ for 160k iterations at a batch of 16, with the optimizer of Swin's UperNet.
_base_ = [
    "../models/deeplabv3plus.py",
    "../datasets/ade20k.py",
    "../schedules/upernet_160k.py",
    "../mmseg_runtime.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(drop_path_rate=0.3))
train_dataloader = dict(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=16000))
