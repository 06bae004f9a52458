_base_ = "./mask-rcnn_slide-pvt-t_fpn_1x_coco.py"
model = dict(backbone=dict(arch="small"))
