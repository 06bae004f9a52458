# MMDetection's RTMDet-L for transformers: 100 epochs at a batch of 128, 640 x 640 pixels.
_base_ = [
    "mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py",
    "../no_decay.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
