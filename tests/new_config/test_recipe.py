import pytest
from mmengine.config import Config

from slide_mm.engine import ConfigError
from slide_mm.new_config.recipe import drop_masks, fit_schedule, scale_images, set_num_classes


def make(max_epochs=12, schedulers=(), **changes):
    return Config(
        dict(
            model=dict(type="RetinaNet"),
            train_dataloader=dict(batch_size=2, dataset=dict(pipeline=[])),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-4)),
            param_scheduler=list(schedulers),
            default_hooks=dict(checkpoint=dict(interval=1)),
            auto_scale_lr=dict(base_batch_size=16),
        )
        | changes
    )


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "num_gpus", "expected"),
    [("SGD", 2, 1, 1 / 8), ("AdamW", 2, 1, 1 / 8**0.5), ("AdamW", 4, 4, 1), ("SGD", 16, 2, 2)],
)
def test_learning_rate_follows_the_batch_size(optimizer, batch_size, num_gpus, expected):
    cfg = make(optim_wrapper=dict(optimizer=dict(type=optimizer, lr=1e-4)))
    cfg.train_dataloader.batch_size = batch_size
    fit_schedule(cfg, 100, num_gpus, 10)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * expected, rel=2e-3)
    assert cfg.auto_scale_lr.base_batch_size == batch_size * num_gpus


@pytest.mark.parametrize(
    ("num_images", "max_epochs", "epochs"),
    [(2, 12, 100), (240, 12, 50), (5000, 12, 12), (117_000, 36, 36), (240, 300, 300)],
)
def test_epochs_are_enough_for_thousands_of_iterations(num_images, max_epochs, epochs):
    cfg = make(max_epochs)
    assert fit_schedule(cfg, num_images, 1, None) == (epochs, epochs * -(-num_images // 2))
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == epochs // 12


def test_a_training_by_iterations_is_never_longer_than_its_own():
    cfg = make(train_cfg=dict(max_iters=1000, val_interval=100))
    assert fit_schedule(cfg, 400, 1, None) == (5, 1000)
    assert cfg.train_cfg == dict(max_iters=1000, val_interval=200)


def test_schedules_by_epochs():
    """That of RTMDet: its second half decays, and its last part has another pipeline."""
    cfg = make(
        300,
        [
            dict(type="LinearLR", by_epoch=False, begin=0, end=1000),
            dict(type="CosineAnnealingLR", begin=150, end=300, T_max=150, by_epoch=True),
            dict(type="MultiStepLR", begin=0, end=300, milestones=[200, 1], by_epoch=True),
        ],
        custom_hooks=[dict(type="PipelineSwitchHook", switch_epoch=280), dict(type="EMAHook")],
    )
    cfg.train_cfg.dynamic_intervals = [(280, 1)]
    fit_schedule(cfg, 100, 1, 30)
    warm_up, cosine, steps = cfg.param_scheduler
    assert warm_up.end == 150
    assert (cosine.begin, cosine.end, cosine.T_max) == (15, 30, 15)
    assert (steps.begin, steps.end, steps.milestones) == (0, 30, [20, 1])
    assert cfg.custom_hooks[0].switch_epoch == 28
    assert cfg.train_cfg.dynamic_intervals is None


def test_schedules_by_iterations():
    """That of UPerNet: what decays begins where the warm-up ends."""
    cfg = make(
        schedulers=[
            dict(type="mmengine.LinearLR", by_epoch=False, begin=0, end=1500),
            dict(type="PolyLR", begin=1500, end=160_000, by_epoch=False),
        ],
        train_cfg=dict(max_iters=160_000, val_interval=16_000),
    )
    fit_schedule(cfg, 100, 1, 20)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.end, decay.begin, decay.end) == (100, 100, 1000)
    assert cfg.train_cfg.val_interval == 83
    fit_schedule(cfg, 100, 1, 6)
    assert cfg.train_cfg.val_interval == 50  # No more often than once an epoch.


def test_a_single_scheduler_without_a_list():
    """As in MMDetection's Mask2Former."""
    scheduler = dict(type="MultiStepLR", end=12, by_epoch=True, milestones=[8, 11])
    cfg = make(param_scheduler=scheduler)
    fit_schedule(cfg, 100, 1, 24)
    assert cfg.param_scheduler.end == 24
    assert cfg.param_scheduler.milestones == [16, 22]


def test_a_long_training_keeps_its_warm_up():
    cfg = make(schedulers=[dict(type="LinearLR", by_epoch=True, begin=0, end=2)])
    fit_schedule(cfg, 20_000, 1, 40)
    assert cfg.param_scheduler[0].end == 2


def test_every_head_gets_its_classes():
    model = dict(
        rpn_head=dict(num_classes=1),
        panoptic_head=dict(
            num_things_classes=80,
            num_stuff_classes=53,
            loss_cls=dict(class_weight=[1.0] * 133 + [0.1]),
        ),
        roi_head=dict(bbox_head=[dict(num_classes=80)] * 3),
        decode_head=dict(num_classes=11, loss_decode=dict(class_weight=[0.3] + [1.0] * 10)),
        loss=dict(class_weight=1.0),
    )
    cfg = make(model=model)
    set_num_classes(cfg, 3)
    assert cfg.model.rpn_head.num_classes == 1
    head = cfg.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (3, 0)
    assert head.loss_cls.class_weight == [1.0] * 3 + [0.1]
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [3] * 3
    assert cfg.model.decode_head.num_classes == 3
    assert cfg.model.decode_head.loss_decode.class_weight is None
    assert cfg.model.loss.class_weight == 1.0


def evaluators(*metrics):
    return {f"{split}_evaluator": dict(metric=list(metrics)) for split in ("val", "test")}


def test_masks_that_cannot_be_left_out():
    cfg = make(model=dict(type="Mask2Former"), **evaluators("bbox", "segm"))
    with pytest.raises(ConfigError, match="Mask2Former learns masks, and 3 of 5 have none: choose"):
        drop_masks(cfg, "3 of 5 have none")
    assert drop_masks(make(**evaluators("bbox")), "") is None


def test_all_sizes_are_scaled_alike():
    pipeline = [
        dict(type="RandomChoiceResize", scales=[(1000, 400), (1000, 800)]),
        dict(type="RandomCrop", crop_size=(400, 200)),
        dict(type="TestTimeAug", transforms=[[dict(type="Resize", scale=(1000, 800))]]),
        dict(type="Pad", size_divisor=32),
    ]
    loaders = {
        f"{split}_dataloader": dict(batch_size=2, dataset=dict(dataset=dict(pipeline=pipeline)))
        for split in ("train", "test")
    }
    cfg = make(
        **loaders,
        val_dataloader=dict(dataset=dict(pipeline=[dict(type="Resize", scale=(1000, 800))])),
        tta_pipeline=pipeline,
        custom_hooks=[dict(type="PipelineSwitchHook", switch_pipeline=pipeline)],
        model=dict(
            data_preprocessor=dict(size=(800, 800), batch_augments=[dict(size=(80, 800))]),
            test_cfg=dict(mode="slide", crop_size=(800, 800), stride=(400, 400)),
            backbone=dict(stride=8),
        ),
    )
    scale_images(cfg, 400)
    small = [
        dict(type="RandomChoiceResize", scales=[(500, 200), (500, 400)]),
        dict(type="RandomCrop", crop_size=(200, 100)),
        dict(type="TestTimeAug", transforms=[[dict(type="Resize", scale=(500, 400))]]),
        dict(type="Pad", size_divisor=32),
    ]
    assert cfg.train_dataloader.dataset.dataset.pipeline == small
    assert cfg.tta_pipeline == cfg.custom_hooks[0].switch_pipeline == small
    assert cfg.val_dataloader.dataset.pipeline[0].scale == (500, 400)
    assert cfg.model.data_preprocessor == dict(
        size=(400, 400), batch_augments=[dict(size=(40, 400))]
    )
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(400, 400), stride=(200, 200))
    assert cfg.model.backbone.stride == 8


def test_sizes_without_a_measure():
    cfg = make(val_dataloader=dict(dataset=dict(pipeline=[])))
    with pytest.raises(ConfigError, match="--image-size needs a Resize"):
        scale_images(cfg, 100)


@pytest.mark.parametrize(
    ("side", "as_two_stage", "queries", "detections"),
    [(800, True, 900, 300), (480, True, 900, 300), (256, True, 276, 276), (256, False, 900, 300)],
)
def test_small_maps_have_as_many_pixels_as_there_are_queries(
    side, as_two_stage, queries, detections
):
    resize = dict(type="Resize", scale=(1333, 800))
    cfg = make(
        model=dict(num_queries=900, as_two_stage=as_two_stage, test_cfg=dict(max_per_img=300)),
        **{f"{x}_dataloader": dict(dataset=dict(pipeline=[resize])) for x in ("val", "test")},
    )
    scale_images(cfg, side)
    assert (cfg.model.num_queries, cfg.model.test_cfg.max_per_img) == (queries, detections)
