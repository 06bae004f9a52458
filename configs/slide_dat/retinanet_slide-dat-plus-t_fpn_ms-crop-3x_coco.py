_base_ = [
    "../_base_/recipes/retinanet_fpn_ms-crop-3x_coco.py",
    "../_base_/backbones/slide_dat_plus.py",
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims[1:]))
