# Swin's recipe for Mask R-CNN: 12 epochs at a batch of 16.
_base_ = [
    "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "../datasets/coco_tta.py",
    "../no_decay.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True, **_base_.no_decay)))
