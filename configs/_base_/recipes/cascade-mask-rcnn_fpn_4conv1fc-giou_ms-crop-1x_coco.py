# DAT++'s short recipe for Cascade Mask R-CNN: 12 epochs on the crops of the long one.
_base_ = "./cascade-mask-rcnn_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
