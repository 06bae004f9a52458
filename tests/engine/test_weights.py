import os
import random

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import weights as weights_module
from slide_mm.engine.weights import (
    check_checkpoint,
    load_from_slide_mm,
    load_weights,
    read_checkpoints_safely,
)
from tests.checkpoints import hostile
from tests.checkpoints.test_state_dicts import TURNS, draw_names, draw_wrappers


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        loss = self.head(self.backbone(inputs)).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_checkpoints_safely()
    return tmp_path


def start_from(path, resume=False):
    return Config(dict(load_from=path, resume=resume))


def is_loaded(model, weights):
    return all(torch.equal(model.state_dict()[name], x) for name, x in weights.items())


def test_mmengine_loads_what_was_checked():
    draw = random.Random(0)
    for number in range(40):
        torch.manual_seed(number)
        weights = Model().state_dict()
        torch.save(draw_wrappers(draw, draw_names(draw, weights), weights), "weights.pth")
        whole, model = draw.random() < 0.5, Model()
        check_checkpoint(start_from("weights.pth"), Model(), whole)
        os.remove("weights.pth")  # It isn't read again.
        load_checkpoint(model, "weights.pth", logger="silent")
        assert is_loaded(model, weights), number


@pytest.mark.parametrize("whole", [True, False])
def test_refuses_what_is_no_weight(whole):
    draw = random.Random(0)
    for kind, turns in TURNS.items():
        for turn in turns:
            weights = Model().state_dict()
            name = draw.choice([x for x in weights if "tracked" not in x])
            weights[name] = turn(torch.rand(weights[name].shape) + 0.5)
            torch.save({"state_dict": weights}, "weights.pth")
            for check in (
                lambda: check_checkpoint(start_from("weights.pth"), Model(), whole),
                lambda: load_weights(Config(), Model(), "weights.pth"),
            ):
                with pytest.raises(CheckpointError, match=kind) as caught:
                    check()
                assert f" {name}" in str(caught.value)
            if "numbers" not in kind:  # Without a model, integers may be what they are.
                with pytest.raises(CheckpointError, match=kind):
                    CheckpointLoader.load_checkpoint("weights.pth", logger="silent")


@pytest.mark.parametrize("container", hostile.CONTAINERS)
def test_mmengine_runs_no_code(container, folder):
    draw = random.Random(container.__name__)
    for _ in range(60):
        container(hostile.draw_pickle(draw), folder / "evil.pth")
        with pytest.raises(CheckpointError, match=r"^checkpoint evil.pth "):
            CheckpointLoader.load_checkpoint("evil.pth", logger="silent")
        assert os.listdir() == ["evil.pth"]


def test_mmengine_has_no_other_way_to_read():
    """Every kind of address that it knows leads to our reading."""
    for pattern, loader in CheckpointLoader._schemes.items():
        assert loader is load_from_slide_mm, pattern


def test_parts_of_other_libraries_start_from_what_is_wrapped():
    """MMEngine takes what lies below state_dict, or the whole file, and warns of the rest."""
    weights = Model().state_dict()
    torch.save({"model": {f"module.{n}": x for n, x in weights.items()}, "epoch": 3}, "w.pth")
    model = Model()
    load_checkpoint(model, "w.pth", logger="silent")
    assert is_loaded(model, weights)


def test_how_much_must_fit():
    """All of it for a test, most of the backbone for fine-tuning."""
    weights = Model().state_dict()

    def check(whole, keep):
        torch.save({name: x for name, x in weights.items() if keep(name)}, "weights.pth")
        check_checkpoint(start_from("weights.pth"), Model(), whole)

    check(False, lambda name: name not in ("head.bias", "backbone.1.bias"))
    for whole, keep, problem in (
        (True, lambda name: name != "head.bias", "fit"),
        (False, lambda name: name in ("head.weight", "backbone.0.bias"), "fit"),
        (False, lambda name: name.startswith("head"), "has no backbone"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            check(whole, keep)


def test_nothing_older_than_what_was_checked_is_loaded():
    for name in ("a.pth", "b.pth"):
        torch.save(Model().state_dict(), name)
        check_checkpoint(start_from(name), Model(), whole=True)
    weights, model = Model().state_dict(), Model()
    torch.save(weights, "a.pth")
    load_checkpoint(model, "a.pth", logger="silent")
    assert is_loaded(model, weights)


def test_names_of_which_mmengine_cuts_a_part():
    weights, model = Model().state_dict(), Model()
    torch.save({"state_dict": {**weights, "module.head.bias": weights["head.bias"] + 1}}, "w.pth")
    check_checkpoint(start_from("w.pth"), Model(), whole=True)
    load_checkpoint(model, "w.pth", logger="silent")
    assert is_loaded(model, weights)


def test_what_is_loaded_without_a_check(monkeypatch):
    torch.save({"state_dict": {}}, "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty.pth has no weights"):
        load_from_slide_mm("empty.pth")
    for dataset_meta in (3, {1: 2}, {"classes": ("a",)}):
        meta = {"dataset_meta": dataset_meta}
        torch.save({"state_dict": Model().state_dict(), "meta": meta}, "w.pth")
        is_sound = dataset_meta not in (3, {1: 2})
        assert load_from_slide_mm("w.pth")["meta"] == (meta if is_sound else {})
    classifier = {"backbone.stem": torch.ones(1), "head.fc": torch.ones(1)}
    monkeypatch.setattr(weights_module, "read_checkpoint", lambda path: {"state_dict": classifier})
    assert load_from_slide_mm("mmcls://resnet")["state_dict"].keys() == {"stem"}


class TestResuming:
    """A training that MMEngine has saved, with averaged weights and a schedule with methods."""

    @pytest.fixture
    def runner(self, folder):
        def make(**resuming):
            return Runner(
                model=Model(),
                work_dir=str(folder),
                train_dataloader=dict(
                    dataset=[torch.randn(3) for _ in range(8)],
                    batch_size=4,
                    sampler=dict(type="DefaultSampler", shuffle=False),
                    collate_fn=lambda items: {"inputs": torch.stack(items)},
                ),
                train_cfg=dict(by_epoch=True, max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01)),
                param_scheduler=[
                    dict(type="OneCycleLR", eta_max=0.1, total_steps=10, by_epoch=False),
                    dict(type="MultiStepLR", milestones=[1, 5], by_epoch=True),
                ],
                default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
                custom_hooks=[dict(type="EMAHook")],
                log_level="ERROR",
                experiment_name=f"run{random.random()}",
                **resuming,
            )

        return make

    def test_goes_on_with_the_whole_state(self, runner):
        first = runner()
        first.train()
        check_checkpoint(start_from("epoch_1.pth", resume=True), Model(), whole=True)
        os.rename("epoch_1.pth", "elsewhere.pth")
        second = runner(load_from="epoch_1.pth", resume=True)
        second.train()  # It has had all its epochs.
        assert (second.epoch, second.iter) == (1, 2)
        assert is_loaded(second.model, first.model.state_dict())
        assert is_loaded(ema_model(second), ema_model(first).state_dict())
        moments = [run.optim_wrapper.optimizer.state_dict()["state"] for run in (first, second)]
        assert all(
            torch.equal(moments[0][i][key], moments[1][i][key])
            for i in moments[0]
            for key in moments[0][i]
        )
        for before, after in zip(first.param_schedulers, second.param_schedulers, strict=True):
            states = [
                {key: x for key, x in scheduler.state_dict().items() if not callable(x)}
                for scheduler in (before, after)
            ]
            assert states[0] == states[1]
            assert vars(before).keys() == vars(after).keys()
        history, resumed = (run.message_hub.get_scalar("train/loss") for run in (first, second))
        assert (history.data[0] == resumed.data[0]).all()
        assert resumed.mean() == history.mean()

    def test_refuses_half_a_state(self, runner):
        runner().train()
        whole = torch.load("epoch_1.pth", weights_only=False)
        for key, problem in (
            ("optimizer", "there is no optimizer"),
            ("message_hub", "there is no message_hub"),
            ("meta", "there is no meta"),
        ):
            torch.save({name: x for name, x in whole.items() if name != key}, "half.pth")
            with pytest.raises(CheckpointError, match=problem):
                check_checkpoint(start_from("half.pth", resume=True), Model(), whole=True)
        for count in (-1, True, "1", 1.5):
            torch.save({**whole, "meta": {**whole["meta"], "iter": count}}, "count.pth")
            with pytest.raises(CheckpointError, match="has counted epochs and iterations as"):
                check_checkpoint(start_from("count.pth", resume=True), Model(), whole=True)
        averaged = dict(whole["ema_state_dict"])
        averaged["module.head.bias"] = averaged["module.head.bias"] * float("nan")
        torch.save({**whole, "ema_state_dict": averaged}, "nan.pth")
        with pytest.raises(CheckpointError, match=r"ema_state_dict of .* values in head.bias"):
            check_checkpoint(start_from("nan.pth", resume=True), Model(), whole=True)
        averaged["module.head.bias"] = torch.zeros(3)
        torch.save({**whole, "ema_state_dict": averaged}, "other.pth")
        with pytest.raises(CheckpointError, match=r"ema_state_dict of .* has another head.bias"):
            check_checkpoint(start_from("other.pth", resume=True), Model(), whole=True)

    def test_runs_no_config_of_a_checkpoint(self, folder):
        """MMEngine runs what it finds below meta as config when it resumes."""
        meta = {"epoch": 1, "iter": 2, "config": "open('canary', 'w').close()"}
        hub = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}
        content = {"meta": meta, "message_hub": hub, "optimizer": {"state": {}}}
        torch.save({**content, "state_dict": Model().state_dict()}, "evil.pth")
        check_checkpoint(start_from("evil.pth", resume=True), Model(), whole=True)
        checked = CheckpointLoader.load_checkpoint("evil.pth", logger="silent")
        read = CheckpointLoader.load_checkpoint("evil.pth", logger="silent")
        assert "config" not in checked["meta"]
        assert "config" not in read["meta"]


def ema_model(runner):
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return hook.ema_model.module
