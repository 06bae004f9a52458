_base_ = ["../_base_/recipes/dino-4scale_8xb2-12e_coco.py", "../_base_/backbones/slide_swin.py"]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims[1:]))
