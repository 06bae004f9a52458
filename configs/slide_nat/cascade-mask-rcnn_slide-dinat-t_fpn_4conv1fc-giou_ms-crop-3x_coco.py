_base_ = "./cascade-mask-rcnn_slide-dinat-mini_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(backbone=dict(arch="tiny", drop_path_rate=0.3))
