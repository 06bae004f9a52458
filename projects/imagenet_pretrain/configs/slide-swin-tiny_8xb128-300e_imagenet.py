"""The paper's recipe, which is Swin's: 300 epochs of ImageNet-1k at a batch of 1024."""

custom_imports = dict(
    imports=["slide_mm", "projects.imagenet_pretrain"], allow_failed_imports=False
)
default_scope = "mmengine"

model = dict(
    type="TimmClassifier",
    model_name="slide_swin_tiny",
    num_classes=1000,
    drop_path_rate=0.2,  # 0.3 for small, 0.5 for base.
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="TimmImageFolder",
        data_root="data/imagenet/train",
        input_size=224,
        is_training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="TimmImageFolder",
        data_root="data/imagenet/val",
        input_size=224,
        interpolation="bicubic",
        crop_pct=0.9,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy")
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(table=dict(decay_mult=0.0)),  # Position tables.
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        T_max=280,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=1024)
# Validated and saved are the averaged weights.
custom_hooks = [dict(type="EMAHook", momentum=1e-4)]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=100),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="top1"),
)
randomness = dict(seed=0, diff_rank_seed=True)
