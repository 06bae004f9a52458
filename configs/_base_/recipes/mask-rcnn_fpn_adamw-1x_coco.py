# PVT's recipe for Mask R-CNN: 12 epochs at a batch of 16 with AdamW.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../datasets/coco_tta.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True))
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=2e-4, weight_decay=1e-4))
