_base_ = "../_base_/recipes/dino-4scale_8xb2-12e_coco.py"
model = dict(backbone=dict(type="SlidePVTv2", arch="b2"), neck=dict(in_channels=[128, 320, 512]))
