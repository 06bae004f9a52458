_base_ = "./slide-dat-plus-small_fpn_8xb4-40k_ade20k-512x512.py"
model = dict(backbone=dict(slide_stages=()))
