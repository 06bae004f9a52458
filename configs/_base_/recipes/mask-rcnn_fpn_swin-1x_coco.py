# Swin's recipe for Mask R-CNN: 12 epochs at a batch of 16.
_base_ = [
    "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "../datasets/coco_tta.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2))
