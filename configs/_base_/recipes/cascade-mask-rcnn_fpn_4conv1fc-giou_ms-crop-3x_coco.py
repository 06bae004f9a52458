# Swin's recipe for Cascade Mask R-CNN: that for Mask R-CNN, and larger box heads with GIoU loss.
# MMDetection has these heads and this schedule together in ConvNeXt's configs alone.
_base_ = [
    "mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
    "../datasets/coco_tta.py",
    "../no_decay.py",
]
custom_imports = dict(imports=["slide_mm"])
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2))
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(_delete_=True, custom_keys=_base_.no_decay),
    optimizer=dict(lr=1e-4),
)
