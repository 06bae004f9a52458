"""A few minutes on digits, which crop_objects.py has cut out of demo scenes."""

_base_ = "./slide-swin-tiny_8xb128-300e_imagenet.py"
model = dict(
    model_name="slide_pvt_v2_b0",
    num_classes=10,
    drop_path_rate=0.0,
    mixup=dict(prob=0.0),
)
loader = dict(batch_size=64, num_workers=1, pin_memory=False)
train_dataloader = dict(
    **loader,
    dataset=dict(
        data_root="data/demo_digits/training",
        input_size=64,
        scale=(0.4, 1.0),
        hflip=0.0,  # Mirrored digits are no digits.
        auto_augment=None,
        re_prob=0.0,
    ),
)
val_dataloader = dict(
    **loader, dataset=dict(data_root="data/demo_digits/validation", input_size=64, crop_pct=1.0)
)
test_dataloader = val_dataloader

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=0,
        T_max=max_epochs - 1,
        begin=1,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [dict(type="EMAHook", momentum=0.01)]
default_hooks = dict(logger=dict(interval=20))
