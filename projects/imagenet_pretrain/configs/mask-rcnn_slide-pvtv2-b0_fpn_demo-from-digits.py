"""The demo's detector, from the backbone that learned digits."""

_base_ = "../../../configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py"
checkpoint = "work_dirs/slide-pvtv2-b0_digits/epoch_8.pth"
model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."))
)
