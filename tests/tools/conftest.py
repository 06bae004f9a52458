import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from slide_mm.datasets import make_demo_scenes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Folder of a few small demo scenes."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_demo_scenes(folder, num_training=4, num_validation=2, image_size=64)
    return folder


@pytest.fixture(scope="session")
def write_config(scenes, tmp_path_factory):
    """Write a config: write_config('mask_rcnn', 'train_cfg = dict(...)') -> path.

    It inherits one of tests/tools/configs and takes its data from the scenes.
    """
    folder = tmp_path_factory.mktemp("configs")
    annotations = str(scenes / "annotations/instances_validation.json")

    def write(base: str, text: str = "") -> str:
        # MMEngine keeps loggers and visualizers by name for the life of the process.
        name = f"{base}_{len(list(folder.iterdir()))}"
        lines = [
            f"_base_ = {str(ROOT / 'tests/tools/configs' / base) + '.py'!r}",
            f"dataset = dict(data_root={str(scenes)!r})",
            "train_dataloader = dict(dataset=dataset)",
            "val_dataloader = test_dataloader = dict(dataset=dataset)",
            f"visualizer = dict(name={name!r})",
        ]
        if base == "mask_rcnn":
            lines.append(f"val_evaluator = test_evaluator = dict(ann_file={annotations!r})")
        path = folder / f"{name}.py"
        path.write_text("\n".join([*lines, text]))
        return str(path)

    return write


@pytest.fixture(scope="session")
def run_tool():
    """Run a file of tools/ as people do: run_tool('train.py', config, ...) -> finished process."""

    def run(tool: str, *args: str, python: str = sys.executable) -> subprocess.CompletedProcess:
        command = [ROOT / "tools" / tool] if tool.endswith(".sh") else [sys.executable]
        if tool.endswith(".py"):
            command.append(ROOT / "tools" / tool)
        env = os.environ | {"PYTHON": python}  # For dist_*.sh.
        return subprocess.run(
            [*command, *args], env=env, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def run(monkeypatch):
    """Run a Python file of tools/ in this process, which is faster: run('train.py', ...)."""

    def run(tool: str, *args: object) -> None:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")

    return run


@pytest.fixture
def refused(run, capsys, monkeypatch, tmp_path):
    """Run a tool on something wrong: one line on stderr, exit code 1 and no files.

    refused('train.py', ...) -> the line.
    """
    monkeypatch.chdir(tmp_path)

    def refused(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run(*args)
        assert exit_info.value.code == 1
        assert sorted(tmp_path.rglob("*")) == before
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return refused
