# MMDetection's Mask2Former for instances: 50 epochs at a batch of 16, the
# backbone at a tenth of the learning rate.
_base_ = [
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "../no_decay.py",
    "../slide_mm.py",
]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_no_decay))
# The config for panoptic images, which it inherits, has a folder of them.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img="train2017/")))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img="val2017/")))
test_dataloader = val_dataloader
