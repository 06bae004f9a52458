_base_ = [
    "../_base_/recipes/cascade-mask-rcnn_fpn_4conv1fc-giou_ms-crop-3x_coco.py",
    "../_base_/backbones/slide_cswin.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
