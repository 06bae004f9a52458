_base_ = ["../_base_/recipes/rtmdet_l_4xb32-100e_coco.py", "../_base_/backbones/slide_swin.py"]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims[1:]))
