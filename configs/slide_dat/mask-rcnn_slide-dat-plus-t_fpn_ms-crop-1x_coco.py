_base_ = [
    "../_base_/recipes/mask-rcnn_fpn_ms-crop-1x_coco.py",
    "../_base_/backbones/slide_dat_plus.py",
]
model = dict(
    backbone=dict(drop_path_rate=0.0, **_base_.backbone),
    neck=dict(in_channels=_base_.embed_dims),
)
