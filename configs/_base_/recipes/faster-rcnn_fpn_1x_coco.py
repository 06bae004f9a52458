# Faster R-CNN for 12 epochs at a batch of 16, with the optimizer of Swin's Mask R-CNN.
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../datasets/coco_tta.py",
    "../no_decay.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05),
)
