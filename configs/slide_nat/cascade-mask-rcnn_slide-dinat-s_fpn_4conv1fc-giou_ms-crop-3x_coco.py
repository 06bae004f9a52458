_base_ = "./cascade-mask-rcnn_slide-dinat-mini_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(
    backbone=dict(arch="small", drop_path_rate=0.5, layer_scale=0),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
