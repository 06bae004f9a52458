# MMDetection's Deformable DETR: 50 epochs at a batch of 32, the backbone at a tenth of the
# learning rate.
_base_ = [
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "../datasets/coco_tta.py",
    "../no_decay.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_no_decay))
