_base_ = ["mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py", "../_base_/slide_mm.py"]
model = dict(backbone=dict(_delete_=True, type="SlideSwin", arch="tiny", drop_path_rate=0.2))
