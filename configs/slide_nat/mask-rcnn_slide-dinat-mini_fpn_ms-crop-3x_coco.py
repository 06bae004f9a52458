_base_ = "./mask-rcnn_slide-nat-mini_fpn_ms-crop-3x_coco.py"
model = dict(backbone=dict(dilations=[[1, 28], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3]]))
