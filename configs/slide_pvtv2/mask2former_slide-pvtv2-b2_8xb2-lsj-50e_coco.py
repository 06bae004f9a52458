_base_ = "../_base_/recipes/mask2former_8xb2-lsj-50e_coco.py"
model = dict(
    backbone=dict(type="SlidePVTv2", arch="b2"), panoptic_head=dict(in_channels=[64, 128, 320, 512])
)
