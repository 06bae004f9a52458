import json
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import load
from PIL import Image

from slide_mm.engine import test as run_test
from slide_mm.engine import train as run_train
from slide_mm.engine.locking import WorkDirLock
from tests.engine.kills import run_two, start, wait

TOOLS = Path(__file__).resolve().parents[2] / "tools"
HOOKS = "custom_imports = dict(imports=['slide_mm', 'hooks'], allow_failed_imports=False)\n"


def last_scalars(work_dir):
    """Last metrics or losses that a run has logged."""
    (path,) = Path(work_dir).glob("*/vis_data/scalars.json")
    return json.loads(path.read_text().splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def hooks_can_be_imported():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield


@pytest.fixture(scope="module")
def killed_detector(write_config, tmp_path_factory):
    """Work folder of a training of 6 iterations, killed after 3."""
    config = write_config(
        "mask_rcnn", HOOKS + "custom_hooks = [dict(type='KillHook', num_iters=3)]"
    )
    work_dir = tmp_path_factory.mktemp("detector")
    assert wait(start(partial(run_train, config, work_dir=str(work_dir)))) == -signal.SIGKILL
    return work_dir


@pytest.fixture(scope="module")
def detector(killed_detector, write_config):
    """Config and checkpoint of a detector."""
    config = write_config("mask_rcnn")
    run_train(config, work_dir=str(killed_detector), resume="auto")
    return write_config("mask_rcnn"), str(killed_detector / "epoch_3.pth")


@pytest.fixture(scope="module")
def segmentor(write_config, tmp_path_factory):
    """Config and checkpoint of a segmentor."""
    config = write_config("semantic_fpn")
    work_dir = tmp_path_factory.mktemp("segmentor")
    run_train(config, work_dir=str(work_dir))
    return write_config("semantic_fpn"), str(work_dir / "iter_3.pth")


def test_killed_training_resumes(killed_detector, detector):
    resumed_log = max(killed_detector.glob("*/*.log")).read_text()
    assert "resumed epoch: 1, iter: 2" in resumed_log
    checkpoint = torch.load(detector[1], weights_only=False)
    meta = checkpoint["meta"]
    assert meta["iter"] == 6
    # What lets it end as if it had not been killed; see tests/engine and test_killed.py.
    assert meta["batches_of_epoch"] == 0
    # The config as it was given: other tools don't know what train.py puts into it.
    for text in (meta["cfg"], *(path.read_text() for path in killed_detector.glob("*.py"))):
        assert "SlidePVTv2" in text
        assert not any(name in text for name in ("Whole", "Repeatable", "Seeded", "PassOver"))
    steps = {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()}
    assert max(steps) == 6


def test_detection_outputs(detector, tmp_path):
    out, show_dir = tmp_path / "predictions.pkl", tmp_path / "pictures"
    metrics = run_test(*detector, work_dir=str(tmp_path), out=str(out), show_dir=str(show_dir))
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= metrics.keys()
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 2
    assert all(len(image["pred_instances"]["masks"]) for image in predictions)
    assert sorted(path.name for path in show_dir.iterdir()) == ["0000.jpg", "0001.jpg"]


def test_segmentation_outputs(segmentor, scenes, tmp_path):
    out, show_dir = tmp_path / "label_maps", tmp_path / "pictures"
    metrics = run_test(*segmentor, work_dir=str(tmp_path), out=str(out), show_dir=str(show_dir))
    validated = last_scalars(Path(segmentor[1]).parent)
    assert metrics["aAcc"] == pytest.approx(validated["aAcc"])
    right = [
        np.asarray(Image.open(path))
        == np.asarray(Image.open(scenes / "annotations" / "validation" / path.name))
        for path in out.iterdir()
    ]
    assert len(right) == 2
    assert 100 * np.mean(right) == pytest.approx(metrics["aAcc"], abs=0.01)
    assert len(list(show_dir.rglob("*.png"))) == 2


def test_tta_mirrors_the_image(detector, segmentor, tmp_path):
    boxes = {}
    for tta in (False, True):
        out = tmp_path / f"{tta}.pkl"
        metrics = run_test(*detector, work_dir=str(tmp_path), out=str(out), tta=tta)
        boxes[tta] = load(out)[0]["pred_instances"]["bboxes"]
    assert "coco/bbox_mAP" in metrics
    assert "coco/segm_mAP" not in metrics
    assert boxes[True].shape != boxes[False].shape or not boxes[True].allclose(boxes[False])

    plain = run_test(*segmentor, work_dir=str(tmp_path))
    mirrored = run_test(*segmentor, work_dir=str(tmp_path), tta=True)
    assert mirrored["aAcc"] != plain["aAcc"]


def test_tta_of_coco_by_other_sizes(detector, write_config, tmp_path):
    coco = (TOOLS.parent / "configs/_base_/datasets/coco_tta.py").read_text(encoding="utf-8")
    sizes = {f"tta_pipeline.1.transforms.0.{i}.scale": (64 + 32 * i, 96) for i in range(3)}
    metrics = run_test(
        write_config("mask_rcnn", coco),
        detector[1],
        work_dir=str(tmp_path),
        tta=True,
        cfg_options=sizes,
    )
    assert "coco/bbox_mAP" in metrics


def test_config_has_its_own_tta(segmentor, write_config, tmp_path):
    """A pipeline with one unchanged view gives what testing without TTA gives."""
    config = write_config(
        "semantic_fpn",
        "tta_model = dict(type='SegTTAModel')\n"
        "tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=["
        "[dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]",
    )
    own = run_test(config, segmentor[1], work_dir=str(tmp_path), tta=True)
    plain = run_test(config, segmentor[1], work_dir=str(tmp_path))
    assert own == plain


def test_training_options(write_config, detector, tmp_path):
    """A segmentor starts from the detector's backbone and trains without validation."""
    run_train(
        write_config("semantic_fpn"),
        work_dir=str(tmp_path),
        auto_scale_lr=True,
        validate=False,
        cfg_options={"load_from": detector[1], "train_cfg.max_iters": 1},
    )
    log = last_scalars(tmp_path)
    assert "aAcc" not in log
    # Half the batch size that the config's learning rate is for.
    assert log["lr"] == pytest.approx(0.5e-3)
    before = torch.load(detector[1], weights_only=False)["state_dict"]
    after = torch.load(tmp_path / "iter_1.pth", weights_only=False)["state_dict"]
    name = "backbone.stages.0.downsample.proj.weight"
    assert before[name].allclose(after[name], atol=2e-3)


@pytest.mark.parametrize("base", ["mask_rcnn", "semantic_fpn"])
def test_mixed_precision(write_config, tmp_path, base):
    hook = "custom_hooks = [dict(type='WatchDtypeHook')]\n"
    loop = "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1)"
    config = write_config(base, HOOKS + hook + loop)
    run_train(config, work_dir=str(tmp_path), amp=True, validate=False)
    assert np.isfinite(last_scalars(tmp_path)["loss"])
    (log,) = tmp_path.glob("*/*.log")
    dtype = "torch.float16" if torch.cuda.is_available() else "torch.bfloat16"
    assert f"neck in {dtype}" in log.read_text()


def test_two_processes(write_config, tmp_path):
    """They see different images, have the same weights after training, and test as one does."""
    config = write_config("semantic_fpn", HOOKS + "custom_hooks = [dict(type='SaveWeightsHook')]")
    run_two(partial(run_train, config, work_dir=str(tmp_path), launcher="pytorch"))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert not set(ranks[0]["images"]) & set(ranks[1]["images"])
    parameters = [name for name in ranks[0]["weights"] if "running" not in name]
    for name in parameters:
        assert ranks[0]["weights"][name].equal(ranks[1]["weights"][name]), name

    config, checkpoint = write_config("semantic_fpn"), str(tmp_path / "iter_3.pth")
    tested = tmp_path / "tested"
    run_two(partial(run_test, config, checkpoint, work_dir=str(tested), launcher="pytorch"))
    (path,) = tested.glob("*/*.json")
    alone = run_test(config, checkpoint, work_dir=str(tmp_path / "alone"))
    assert json.loads(path.read_text())["aAcc"] == pytest.approx(alone["aAcc"])


@pytest.mark.parametrize("name", ["train", "test"])
def test_shell_tools(run_tool, monkeypatch, name):
    process = run_tool(f"dist_{name}.sh", "config.py")
    assert process.returncode == 2
    assert process.stderr.startswith("usage:")
    monkeypatch.setenv("PORT", "1234")
    files = ["config.py", *["checkpoint.pth"] * (name == "test")]
    command = run_tool(f"dist_{name}.sh", *files, "3", "--tta", python="echo").stdout.split()
    assert command[:2] == ["-m", "torch.distributed.run"]
    assert {"--nproc_per_node=3", "--master_port=1234"} <= set(command)
    tool = str(TOOLS / f"{name}.py")
    expected = [tool, *files, "--launcher", "pytorch", "--tta"]
    assert command[command.index(tool) :] == expected


class TestWrongInputs:
    def test_through_a_process(self, run_tool, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        process = run_tool("train.py", "nowhere.py")
        assert process.returncode == 1
        assert process.stderr == "error: config nowhere.py does not exist: check the path\n"
        assert not os.listdir(tmp_path)

    def test_not_a_config(self, refused, tmp_path, segmentor):
        (tmp_path / "text.txt").write_text("no config")
        (tmp_path / "text.py").write_text("no config")
        (tmp_path / "empty.py").write_text("")
        assert "text.txt cannot be read" in refused("train.py", "text.txt")
        assert "text.py cannot be read" in refused("train.py", "text.py")
        assert "empty.py has no model" in refused("train.py", "empty.py")
        assert "empty.py has no model" in refused("test.py", "empty.py", segmentor[1])
        assert "empty.py has no model" in refused("analysis_tools/get_flops.py", "empty.py")
        (tmp_path / "folder.py").mkdir()
        assert "folder.py is a folder" in refused("train.py", "folder.py")
        assert "folder.py is a folder" in refused("analysis_tools/get_flops.py", "folder.py")

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("train_dataloader.dataset.data_root=nowhere", "nowhere"),
            ("train_dataloader.dataset.ann_file=nothing.json", "nothing.json"),
            ("train_dataloader.dataset.data_prefix.img=empty", "scenes/empty"),
            ("val_evaluator.ann_file=nothing.json", "nothing.json"),
        ],
    )
    def test_missing_data(self, refused, write_config, option, said):
        line = refused("train.py", write_config("mask_rcnn"), "--cfg-options", option)
        assert line.startswith(f"error: {option.partition('=')[0]} is ")
        assert f"{said}, which does not exist" in line
        assert "--cfg-options" in line

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("arch=b9", "b9"),
            ("arch.embed_dims=(8,17,16,32)", "17"),
            ("kernel_size=4", "4"),
            ("slide_stages=(0,7)", "7"),
            ("out_indices=(0,4)", "4"),
            ("type=SlideSwine", "SlideSwine"),
            ("kernel=3", "kernel"),
        ],
    )
    def test_wrong_model(self, refused, write_config, option, said):
        option = f"model.backbone.{option}"
        assert said in refused("train.py", write_config("mask_rcnn"), "--cfg-options", option)

    def test_work_folder_of_a_running_training(self, refused, write_config, tmp_path):
        with WorkDirLock(tmp_path):
            line = refused("train.py", write_config("mask_rcnn"), "--work-dir", tmp_path)
        assert f"another training is running in {tmp_path}" in line

    def test_unusable_checkpoint(self, refused, segmentor, tmp_path):
        config, checkpoint = segmentor
        Path("zero.pth").touch()
        Path("half.pth").write_bytes(Path(checkpoint).read_bytes()[:10000])
        weights = torch.load(checkpoint, weights_only=False)["state_dict"]
        torch.save({"state_dict": weights}, "weights.pth")
        assert "nothing.pth does not exist" in refused("test.py", config, "nothing.pth")
        assert "nothing.pth does not exist" in refused(
            "train.py", config, "--resume", "nothing.pth"
        )
        assert "zero.pth (0 bytes) cannot be read" in refused("test.py", config, "zero.pth")
        assert "half.pth (10000 bytes) cannot be read" in refused("test.py", config, "half.pth")
        assert "weights without the state" in refused("train.py", config, "--resume", "weights.pth")

    def test_checkpoint_of_another_architecture(self, refused, detector, segmentor, write_config):
        wider = "model.backbone.arch.embed_dims=(8,16,32,64)"
        wider = [wider, "model.neck.in_channels=[8,16,32,64]"]
        config, checkpoint = detector
        line = refused("test.py", config, checkpoint, "--cfg-options", *wider)
        assert checkpoint in line
        assert "(16," in line
        assert "(32," in line
        line = refused("train.py", config, "--resume", checkpoint, "--cfg-options", *wider)
        assert "tensors fit" in line
        line = refused("train.py", config, "--cfg-options", f"load_from={checkpoint}", *wider)
        assert "does not fit SlidePVTv2" in line
        assert "tensors fit" in refused("test.py", segmentor[0], checkpoint)

    def test_pretrained_backbone(self, refused, write_config, detector):
        config = write_config("semantic_fpn", "model = dict(backbone=dict(init_cfg=dict()))")
        pretrained = "model.backbone.init_cfg.type=Pretrained"
        option = "model.backbone.init_cfg.checkpoint"
        missing = refused("train.py", config, "--cfg-options", pretrained, f"{option}=no.pth")
        assert "no.pth does not exist" in missing
        wider = [
            "model.backbone.arch.embed_dims=(8,16,32,64)",
            "model.neck.in_channels=[8,16,32,64]",
        ]
        options = [pretrained, f"{option}={detector[1]}", *wider]
        assert "does not fit SlidePVTv2" in refused("train.py", config, "--cfg-options", *options)

    def test_options_that_do_not_go_together(self, refused, detector, segmentor, write_config):
        assert ".pkl" in refused("test.py", *detector, "--out", "folder")
        assert "folder" in refused("test.py", *segmentor, "--out", "file.pkl")
        plain = write_config("mask_rcnn")
        assert "base_batch_size" in refused("train.py", plain, "--auto-scale-lr")
        other = "optim_wrapper.type=ApexOptimWrapper"
        line = refused("train.py", plain, "--amp", "--cfg-options", other)
        assert "ApexOptimWrapper" in line
        assert "dist_train.sh" in refused("train.py", plain, "--launcher", "pytorch")
        beyond = "model.neck.in_channels.4=8"
        assert "--cfg-options does not fit" in refused("train.py", plain, "--cfg-options", beyond)
        for text in ("a", "a=[1,(2]"):
            assert "give KEY=VALUE" in refused("train.py", plain, "--cfg-options", text)
            assert "give KEY=VALUE" in refused("test.py", *detector, "--cfg-options", text)
        below = str(Path(plain, "work"))
        assert f"{plain} is no folder" in refused("train.py", plain, "--work-dir", below)
        assert f"{plain} is no folder" in refused("test.py", *detector, "--work-dir", below)
