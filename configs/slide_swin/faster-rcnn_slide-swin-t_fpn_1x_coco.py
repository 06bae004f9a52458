_base_ = ["../_base_/recipes/faster-rcnn_fpn_1x_coco.py", "../_base_/backbones/slide_swin.py"]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.embed_dims))
