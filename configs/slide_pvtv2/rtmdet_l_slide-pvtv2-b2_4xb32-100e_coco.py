_base_ = "../_base_/recipes/rtmdet_l_4xb32-100e_coco.py"
model = dict(backbone=dict(type="SlidePVTv2", arch="b2"), neck=dict(in_channels=[128, 320, 512]))
