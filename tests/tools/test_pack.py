import json
import os
import runpy
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.fileio import load
from PIL import Image
from safetensors.torch import load_file

from slide_mm.engine import test as run_test
from slide_mm.engine import train as run_train
from slide_mm.engine.config import load_config
from slide_mm.engine.preflight import check_model
from slide_mm.packing import models
from tests.tools.conftest import ROOT

TOOL = "model_converters/pack.py"
TRAINING = """
custom_hooks = [dict(type="EMAHook", momentum=0.3)]
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1, save_best="coco/bbox_mAP"))
"""


@pytest.fixture(scope="module")
def detector(write_config, tmp_path_factory):
    """Work folder of a detector whose averaged weights are tested."""
    work_dir = tmp_path_factory.mktemp("runs") / "digits"
    run_train(write_config("mask_rcnn", TRAINING), work_dir=str(work_dir))
    return work_dir


@pytest.fixture(scope="module")
def segmentor(write_config, tmp_path_factory):
    """Weights without a training's state, and their config."""
    config = write_config("semantic_fpn")
    torch.manual_seed(0)
    weights = check_model(load_config(config), pretrained=False).state_dict()
    path = tmp_path_factory.mktemp("segmentor") / "weights.pth"
    torch.save(weights, path)
    return path, config


@pytest.fixture
def pack(run):
    return partial(run, TOOL)


def facts_of(folder):
    return json.loads((folder / "model.json").read_text())


def test_detector_predicts_the_same_bit_by_bit(pack, run, detector, scenes, tmp_path, capsys):
    checkpoint, folder = detector / "epoch_2.pth", tmp_path / "packed"
    pack(checkpoint, "--out", folder, "--license", "cc0-1.0")
    given = dict(work_dir=str(tmp_path / "logs"))
    (config,) = detector.glob("*.py")
    expected = run_test(str(config), str(checkpoint), out=str(tmp_path / "a.pkl"), **given)
    data = {"test_dataloader.dataset.data_root": str(scenes)}
    data["test_evaluator.ann_file"] = str(scenes / "annotations/instances_validation.json")
    metrics = run_test(str(folder), out=str(tmp_path / "b.pkl"), cfg_options=data, **given)
    assert metrics == expected
    for one, other in zip(load(tmp_path / "a.pkl"), load(tmp_path / "b.pkl"), strict=True):
        one, other = one["pred_instances"], other["pred_instances"]
        assert len(one["scores"]) > 0
        assert all(one[key].equal(other[key]) for key in ("bboxes", "scores", "labels"))
        assert one["masks"] == other["masks"]

    content = torch.load(checkpoint, weights_only=False)
    averaged, last = content["state_dict"], content["ema_state_dict"]
    packed = load_file(folder / "model.safetensors")
    assert packed.keys() == averaged.keys()
    assert all(x.equal(averaged[name]) for name, x in packed.items())
    name = "neck.lateral_convs.0.conv.weight"
    assert not packed[name].equal(last[f"module.{name}"])

    facts = facts_of(folder)
    assert facts["classes"] == list("0123456789")
    assert facts["model"] == "MaskRCNN"
    assert facts["preprocessing"]["data_preprocessor"]["mean"] == [123.675, 116.28, 103.53]
    assert facts["trained_for"] == "2 epochs, 4 iterations"
    assert facts["metrics"] == {key: pytest.approx(x) for key, x in metrics.items()}
    card = (folder / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "Modules that the config imports:**\n  - slide_mm\n" in card
    assert "coco/bbox_mAP: " in card

    image = scenes / "images/validation/0000.jpg"
    run("infer.py", folder, "--out", tmp_path / "seen", image, "--score-thr", 0)
    run("infer.py", config, "--out", tmp_path / "known", checkpoint, image, "--score-thr", 0)
    seen, known = (load(tmp_path / x / "results.json") for x in ("seen", "known"))
    assert seen["images"] == known["images"]
    assert seen["images"][0]["instances"]


def test_weights_of_an_earlier_iteration_have_no_metrics(pack, detector, tmp_path):
    pack(detector / "epoch_1.pth", "--out", tmp_path / "packed")
    facts = facts_of(tmp_path / "packed")
    assert facts["trained_for"] == "1 epoch, 2 iterations"
    assert facts["metrics"] == {}
    assert facts["license"] == "unknown"


def test_segmentor_of_bare_weights(pack, run, segmentor, scenes, tmp_path, monkeypatch, capsys):
    """Packed by somebody who is called like a class."""
    checkpoint, config = segmentor
    monkeypatch.setenv("LOGNAME", "background")
    pack(checkpoint, "--config", config, "--out", tmp_path / "packed")
    assert "config.py has the word background, which names this user" in capsys.readouterr().out
    image = scenes / "images/validation/0000.jpg"
    run("infer.py", tmp_path / "packed", image, "--out", tmp_path / "seen")
    run("infer.py", config, checkpoint, image, "--out", tmp_path / "known")
    seen, known = (
        np.array(Image.open(tmp_path / x / "labels/0000.jpg.png")) for x in ("seen", "known")
    )
    assert (seen == known).all()
    assert len(np.unique(seen)) > 1
    # Packing what was packed changes nothing but the licence.
    pack(tmp_path / "packed", "--out", tmp_path / "again", "--license", "mit")
    for name in ("config.py", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


PRIVATE = """
import os
home = os.path.expanduser("~")
work_dir, load_from, experiment_name = f"{home}/runs", f"{home}/a.pth", "hannah"
visualizer = dict(
    vis_backends=[dict(type="WandbVisBackend", init_kwargs=dict(entity="hannah"), save_dir=home)]
)
default_hooks = dict(checkpoint=dict(out_dir=f"{home}/out"))
custom_hooks = [dict(type="UploadHook", user="hannah")]
init_cfg = dict(type="Pretrained", checkpoint=f"{home}/swin.pth")
model = dict(backbone=dict(init_cfg=init_cfg))
test_evaluator = dict(outfile_prefix=f"{home}/predictions")
"""


@pytest.mark.parametrize("options", [(), ("--backbone",)])
def test_folder_holds_nothing_of_the_machine(
    options, pack, detector, write_config, scenes, tmp_path, monkeypatch, capsys
):
    home = tmp_path / "home" / "hannah"
    home.mkdir(parents=True)
    for name, value in {"HOME": home, "USER": "hannah", "LOGNAME": "hannah"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(socket, "gethostname", lambda: "hannahs-machine")
    monkeypatch.chdir(home)
    config = write_config("mask_rcnn", PRIVATE)
    pack(detector / "epoch_2.pth", "--config", config, "--out", "packed", *options)
    private = [home, detector, scenes, ROOT, Path(config).parent, os.getcwd()]
    content = [path.read_bytes() for path in Path("packed").iterdir()]
    assert len({path.stat().st_mode for path in Path("packed").iterdir()}) == 1
    assert len(content) == (3 if options else 4)
    for text in [*map(str, private), "hannah", "/tmp", "optimizer_state", "exp_avg"]:
        assert not any(text.encode() in part for part in content), text
    names = load_file("packed/model.safetensors").keys()
    known = torch.load(detector / "epoch_2.pth", weights_only=False)["state_dict"]
    assert names <= {*known, *(name.removeprefix("backbone.") for name in known)}
    assert "look at it" not in capsys.readouterr().out


def test_backbone_of_a_detector(pack, detector, tmp_path):
    folder = tmp_path / "packed"
    pack(detector / "epoch_2.pth", "--out", folder, "--backbone")
    cfg = json.loads((folder / "config.json").read_text())
    assert cfg["num_classes"] == 0
    assert cfg["pretrained_cfg"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    checkpoint = torch.load(detector / "epoch_2.pth", weights_only=False)
    trained = check_model(load_config(next(detector.glob("*.py"))), pretrained=False)
    trained.load_state_dict(checkpoint["state_dict"])
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        tokens = trained.eval().backbone.forward_stages(images, range(4))
        for one, other in zip(model(images), tokens, strict=True):
            assert one.equal(other.permute(0, 3, 1, 2))


def test_backbone_starts_from_a_packed_detector(pack, detector, tmp_path):
    pack(detector / "epoch_2.pth", "--out", tmp_path / "packed")
    cfg = load_config(tmp_path / "packed")
    backbone = dict(cfg.model.backbone, init_cfg=dict(type="Pretrained"))
    backbone["init_cfg"]["checkpoint"] = str(tmp_path / "packed")
    cfg.model.backbone = backbone
    weights = check_model(cfg, pretrained=True).state_dict()
    packed = load_file(tmp_path / "packed/model.safetensors")
    names = [name for name in packed if name.startswith("backbone.")]
    assert names
    assert all(packed[name].equal(weights[name]) for name in names)


class TestRefusals:
    def test_half_a_folder(self, pack, refused, segmentor, scenes, tmp_path, monkeypatch):
        """Neither what a failure leaves nor what a kill or a copy leaves is taken."""
        checkpoint, config = segmentor
        arguments = (checkpoint, "--config", config, "--out")
        monkeypatch.setattr(models, "write_model_card", fail)
        line = refused(TOOL, *arguments, tmp_path / "failed")
        assert "a file cannot be written: [Errno 28] full" in line
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        image = scenes / "images/validation/0000.jpg"
        folders = {x: x.replace(".", "_") for x in ("model.json", "config.py", "model.safetensors")}
        for name, folder in folders.items():
            pack(*arguments, folder)
            os.remove(Path(folder, name))
            assert f"{folder} is a folder" in refused("infer.py", folder, image)
        pack(*arguments, "whole")
        shutil.copy(checkpoint, "whole/model.safetensors")
        assert "another model.safetensors than its model.json" in refused(
            "infer.py", "whole", image
        )

    def test_no_config(self, refused, segmentor, tmp_path):
        weights = shutil.copy(segmentor[0], tmp_path / "weights.pth")
        line = refused(TOOL, weights, "--out", "packed")
        assert "holds no config, and beside it there is no config: give one with --config" in line
        for name in ("a.py", "b.py"):
            Path(name).write_text("model = dict()")
        assert "beside it there is a.py and b.py" in refused(TOOL, weights, "--out", "packed")

    def test_options(self, refused, detector, segmentor, write_config, tmp_path):
        checkpoint = detector / "epoch_2.pth"
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").touch()
        assert "there already" in refused(TOOL, checkpoint, "--out", "full")
        assert "there already" in refused(TOOL, checkpoint, "--out", "full/file")
        assert "--license is 'my own'" in refused(
            TOOL, checkpoint, "--out", "out", "--license", "my own"
        )
        assert "are of --backbone" in refused(
            TOOL, checkpoint, "--out", "out", "--model-options", "kernel_size=5"
        )
        wrong = write_config("mask_rcnn", "model = dict(note='/home/hannah/notes')")
        line = refused(TOOL, checkpoint, "--config", wrong, "--out", "out")
        assert "cannot build the model" in line
        wrong = write_config("mask_rcnn", "log_processor = dict(type='/home/hannah/notes')")
        line = refused(TOOL, checkpoint, "--config", wrong, "--out", "out")
        assert "log_processor.type of the config is /home/hannah/notes" in line
        line = refused(TOOL, segmentor[0], "--config", wrong, "--out", "out")
        assert "tensors fit" in line
        wrong = write_config("mask_rcnn", f"visualizer = dict(name='of {tmp_path}/a')")
        line = refused(TOOL, checkpoint, "--config", wrong, "--out", "out")
        assert f"config.py would hold the path {tmp_path}" in line

    def test_config_without_weights(self, refused, segmentor, scenes):
        image = scenes / "images/validation/0000.jpg"
        line = refused("infer.py", segmentor[1], image)
        assert "there are no weights for config" in line
        assert "there are no weights for config" in refused("test.py", segmentor[1])


@pytest.mark.parametrize("tool", ["test.py", "deployment/export.py"])
def test_options_may_stand_before_the_checkpoint(tool, monkeypatch):
    arguments = ["a.py", "--out", "b", "c.pth"]
    for given, checkpoint in ((arguments, "c.pth"), (arguments[:-1], None)):
        monkeypatch.setattr("sys.argv", [tool, *given])
        args = runpy.run_path(str(ROOT / "tools" / tool))["parse_args"]()
        args = args if isinstance(args, dict) else vars(args)
        assert (args["config"], args["checkpoint"], args["out"]) == ("a.py", checkpoint, "b")


def fail(*_):
    raise OSError(28, "full")


def test_a_folder_stands_for_config_and_checkpoint_in_several_processes(tmp_path):
    def command(*arguments):
        script = ["bash", ROOT / "tools/dist_test.sh", *map(str, arguments), "--tta"]
        environment = {**os.environ, "PYTHON": "echo"}
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert "--nproc_per_node=2" in command(tmp_path, 2)
    assert f"test.py {tmp_path} {tmp_path} --launcher pytorch --tta" in command(tmp_path, 2)
    assert command(tmp_path, 2) == command(tmp_path, tmp_path, 2)
