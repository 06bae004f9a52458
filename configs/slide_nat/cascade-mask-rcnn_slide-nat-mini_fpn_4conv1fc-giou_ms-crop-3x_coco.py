_base_ = [
    "../_base_/recipes/cascade-mask-rcnn_fpn_4conv1fc-giou_ms-crop-3x_coco.py",
    "../_base_/backbones/slide_nat.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
# The authors warm up for 500 iterations, and not for 1000 as in Swin's recipe.
param_scheduler = [dict(_base_.param_scheduler[0], end=500), _base_.param_scheduler[1]]
