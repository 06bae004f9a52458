# The demo's small heads on Slide-Swin-T.
_base_ = "../../../configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py"
model = dict(
    backbone=dict(_delete_=True, type="SlideSwin", arch="tiny", drop_path_rate=0.0),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
