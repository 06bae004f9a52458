"""What people and attackers hand to the tools: it works, or one line says why not.

    pytest -m slow tests/campaign            # HOSTILE_SEED=1 draws others

Prints a table of what was tried and how it ended.
"""

import copy
import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from slide_mm.datasets import make_demo_scenes
from slide_mm.engine.config import load_config
from slide_mm.engine.preflight import check_model
from tests.campaign.checkpoints import damage, unfit_weights, wrapped_weights
from tests.campaign.forks import ROOT, Outcome, run_forked
from tests.campaign.inputs import (
    alter_config,
    damage_annotations,
    hostile_argument,
    place_image,
)
from tests.checkpoints import hostile

NUM_HOSTILE = int(os.environ.get("NUM_HOSTILE", "1200"))
KINDS = ("hostile", "unfit", "wrapped", "damaged", "annotations", "images", "config", "arguments")
TOOLS = (
    *("train.py", "test.py", "infer.py", "misc/check_data.py"),
    *("model_converters/convert_checkpoint.py", "analysis_tools/get_flops.py"),
    "analysis_tools/plot_logs.py",
    *("deployment/export.py", "analysis_tools/check_local_attention.py"),
    "dataset_converters/crop_objects.py",
)
METRIC = re.compile(r"(?:mIoU|bbox_mAP): +([-\d.]+)")


class Ground:
    """Scenes, configs and weights that are sound."""

    def __init__(self, folder: Path) -> None:
        self.scenes = folder / "scenes"
        make_demo_scenes(self.scenes, num_training=4, num_validation=2, image_size=64)
        self.weights = {}
        for name in ("mask_rcnn", "semantic_fpn"):
            path = self.config(name, self.scenes, folder / f"{name}.py")
            torch.manual_seed(0)
            self.weights[name] = check_model(load_config(path), pretrained=False).state_dict()

    def config(self, name: str, scenes: Path, path: Path, alter=None) -> Path:
        """Write a config of its own, which trains for one iteration; return its path."""
        config = Config.fromfile(ROOT / f"tests/tools/configs/{name}.py").to_dict()
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            config[loader]["dataset"]["data_root"] = str(scenes)
            config[loader]["num_workers"] = 0
        if name == "mask_rcnn":
            file = str(scenes / "annotations/instances_validation.json")
            for key in ("val_evaluator", "test_evaluator"):
                config[key] = dict(config[key], ann_file=file)
            config["train_cfg"] = dict(type="EpochBasedTrainLoop", max_epochs=1)
        else:
            config["train_cfg"] = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
        if alter:
            config = copy.deepcopy(config)
            alter(config)
        Config(config).dump(path)
        return path


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    torch.set_num_threads(1)
    return Ground(tmp_path_factory.mktemp("ground"))


def _save(checkpoint, path: Path) -> None:
    """As somebody's script does; a name that is a number included."""
    torch.save(checkpoint, path)


def _checkpoint_commands(config: Path, file: Path, folder: Path) -> list[tuple[str, list[str]]]:
    images = str(folder / "scenes/images/validation")
    out = str(folder / "out")
    return [
        ("test.py", [str(config), str(file), "--work-dir", out]),
        ("infer.py", [str(config), str(file), images, "--out", out, "--device", "cpu"]),
        (
            "train.py",
            [str(config), "--work-dir", out, "--cfg-options", f"load_from={file}"],
        ),
        ("train.py", [str(config), "--work-dir", out, "--resume", str(file)]),
        (
            "model_converters/convert_checkpoint.py",
            [str(file), f"{out}.pth", "--arch", "slide-pvtv2/b0"],
        ),
        ("deployment/export.py", [str(config), str(file), "--out", f"{out}.onnx"]),
    ]


def _left_behind(folder: Path) -> list[str]:
    """What a refused command has left."""
    hidden = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
    return hidden + [path.name for path in folder.glob("out*") if path.name != "output.txt"]


def _refused(outcome: Outcome, folder: Path) -> list[str]:
    complaints = outcome.complaints()
    if outcome.code == 0:
        complaints.append("was taken")
    elif left := _left_behind(folder):
        complaints.append(f"left {left[:3]}")
    return complaints


def _either(outcome: Outcome, folder: Path) -> list[str]:
    return outcome.complaints() if outcome.code == 0 else _refused(outcome, folder)


def try_hostile(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    config = ground.config(name, folder / "scenes", folder / "config.py")
    file = folder / "model.pth"
    rng.choice(hostile.CONTAINERS)(hostile.draw_pickle(rng), file)
    command = rng.choice(_checkpoint_commands(config, file, folder))
    outcome = run_forked(*command, folder)
    complaints = _refused(outcome, folder)
    if (folder / "canary").exists():
        complaints.append("CODE WAS RUN")
    return command[0], complaints, outcome


def try_unfit(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    config = ground.config(name, folder / "scenes", folder / "config.py")
    what, checkpoint = unfit_weights(rng, ground.weights[name])
    _save(checkpoint, folder / "model.pth")
    commands = _checkpoint_commands(config, folder / "model.pth", folder)
    command = rng.choice([commands[0], commands[1], commands[3], commands[5]])
    outcome = run_forked(*command, folder)
    return f"{command[0]} {what}", _refused(outcome, folder), outcome


def _metric(outcome: Outcome) -> str | None:
    found = METRIC.findall(outcome.output)
    return found[-1] if found else None


def try_wrapped(rng, ground, folder):
    name = "semantic_fpn"
    config = ground.config(name, folder / "scenes", folder / "config.py")
    weights = {k: x.clone() for k, x in ground.weights[name].items()}
    label = rng.randrange(11)
    weights["decode_head.conv_seg.bias"][label] += 1000
    _save(wrapped_weights(rng, weights), folder / "model.pth")
    command = _checkpoint_commands(config, folder / "model.pth", folder)[1]
    outcome = run_forked(*command, folder)
    complaints = outcome.complaints()
    if outcome.code == 0:
        images = json.loads((folder / "out/results.json").read_text())["images"]
        expected = {["background", *"0123456789"][label]: 1.0}
        if any(image["shares"] != expected for image in images):
            complaints.append("predicted with other weights")
    else:
        complaints.append("was refused")
    return command[0], complaints, outcome


def try_damaged(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    config = ground.config(name, folder / "scenes", folder / "config.py")
    file = folder / "model.pth"
    _save({"state_dict": ground.weights[name], "meta": {"epoch": 1}}, file)
    content = file.read_bytes()
    damaged = damage(rng, content)
    file.write_bytes(damaged)
    command = rng.choice(_checkpoint_commands(config, file, folder)[:4])
    outcome = run_forked(*command, folder)
    judge = _either if damaged == content else _refused
    return command[0], judge(outcome, folder), outcome


def try_annotations(rng, ground, folder):
    split = rng.choice(("training", "validation"))
    path = folder / f"scenes/annotations/instances_{split}.json"
    coco = json.loads(path.read_text())
    what = damage_annotations(rng, coco)
    path.write_text(json.dumps(coco))
    config = ground.config("mask_rcnn", folder / "scenes", folder / "config.py")
    checked = run_forked("misc/check_data.py", [str(config), "--workers", "1"], folder)
    outcome = run_forked("train.py", [str(config), "--work-dir", str(folder / "out")], folder)
    complaints = [f"check_data: {line}" for line in checked.complaints()]
    complaints += _either(outcome, folder)
    if checked.code == 0 and outcome.code != 0:
        complaints.append("check_data.py said ok")
    return f"{split} {what}", complaints, outcome


def try_images(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    split = rng.choice(("training", "validation"))
    kind = rng.choice(("images", "images", "annotations")) if name == "semantic_fpn" else "images"
    path = rng.choice(sorted((folder / f"scenes/{kind}/{split}").iterdir()))
    what = f"{name} {kind} {split} {place_image(rng, path)}"
    config = ground.config(name, folder / "scenes", folder / "config.py")
    _save({"state_dict": ground.weights[name]}, folder / "model.pth")
    commands = _checkpoint_commands(config, folder / "model.pth", folder)
    tool, arguments = rng.choice(
        [
            ("misc/check_data.py", [str(config), "--workers", "1"]),
            commands[0],
            commands[1],
            ("train.py", [str(config), "--work-dir", str(folder / "out")]),
        ]
    )
    outcome = run_forked(tool, arguments, folder)
    return f"{tool} {what}", _either(outcome, folder), outcome


def try_config(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    told = []
    alter = lambda config: told.append(alter_config(rng, config))  # noqa: E731
    config = ground.config(name, folder / "scenes", folder / "config.py", alter)
    _save({"state_dict": ground.weights[name]}, folder / "model.pth")
    commands = _checkpoint_commands(config, folder / "model.pth", folder)
    train = ("train.py", [str(config), "--work-dir", str(folder / "out")])
    flops = ("analysis_tools/get_flops.py", [str(config)])
    tool, arguments = rng.choice([train, train, train, train, commands[0], commands[1], flops])
    outcome = run_forked(tool, arguments, folder)
    return f"{tool} {name}: {told[0]}", _either(outcome, folder), outcome


def try_arguments(rng, ground, folder):
    name = rng.choice(list(ground.weights))
    config = ground.config(name, folder / "scenes", folder / "config.py")
    _save({"state_dict": ground.weights[name]}, folder / "model.pth")
    tool = rng.choice(TOOLS)
    arguments = [
        rng.choice((str(config), str(folder / "model.pth"), hostile_argument(rng, folder)))
        for _ in range(rng.randint(0, 4))
    ]
    options = ("--out", "--work-dir", "--cfg-options", "--resume", "--shape", "--device", "--arch")
    if rng.random() < 0.5:
        arguments += [rng.choice(options), hostile_argument(rng, folder)]
    outcome = run_forked(tool, arguments, folder)
    shown = " ".join(argument[-30:] for argument in arguments)
    return f"{tool} {shown}", outcome.complaints(), outcome


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousand_mistakes(kind, ground, tmp_path, request):
    rng = random.Random(f"{kind} {os.environ.get('HOSTILE_SEED', '0')}")
    failures, ends, longest, largest = [], Counter(), 0.0, 0
    for index in range(NUM_HOSTILE // len(KINDS)):
        folder = tmp_path / str(index)
        folder.mkdir()
        shutil.copytree(ground.scenes, folder / "scenes")
        what, complaints, outcome = globals()[f"try_{kind}"](rng, ground, folder)
        ends[outcome.code] += 1
        longest, largest = max(longest, outcome.seconds), max(largest, outcome.peak)
        if complaints:
            tail = "\n    ".join(outcome.output.splitlines()[-6:])
            failures.append(f"{folder}\n  {what}: {', '.join(complaints)}\n    {tail}")
        else:
            shutil.rmtree(folder)
    table = (
        f"{kind}: {sum(ends.values())} tried, {ends[0]} did what was asked, "
        f"{ends[1] + ends[2]} refused, {len(failures)} wrong; "
        f"longest {longest:.1f} s, largest {largest / 2**30:.2f} GiB"
    )
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table}")
    assert not failures, "\n".join([f"{len(failures)} wrong:", *failures])
