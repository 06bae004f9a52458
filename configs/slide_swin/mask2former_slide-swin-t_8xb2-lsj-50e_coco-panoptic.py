_base_ = [
    "../_base_/recipes/mask2former_8xb2-lsj-50e_coco-panoptic.py",
    "../_base_/backbones/slide_swin.py",
]
model = dict(backbone=_base_.backbone, panoptic_head=dict(in_channels=_base_.embed_dims))
