_base_ = "../_base_/recipes/mask-rcnn_fpn_adamw-1x_coco.py"
model = dict(
    backbone=dict(_delete_=True, type="SlidePVT", arch="tiny"),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
