import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "model-index.yml")
FOLDERS = ("slide_mm", "configs", "tools")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder in which the repository's wheel has been unpacked, as pip does it."""
    pytest.importorskip("setuptools", "77", "pyproject.toml asks for setuptools 77 or later")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *build, "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_model_index_leads_to_packaged_configs(installed):
    mim = installed / "slide_mm/.mim"
    index = yaml.safe_load((mim / "model-index.yml").read_text(encoding="utf-8"))
    for metafile in index["Import"]:
        for model in yaml.safe_load((mim / metafile).read_text(encoding="utf-8"))["Models"]:
            assert (mim / model["Config"]).is_file()


def test_demo_trains_from_the_packaged_config_alone(installed, scenes, tmp_path):
    mim = installed / "slide_mm/.mim"
    command = [
        *(sys.executable, mim / "tools/train.py"),
        mim / "configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py",
        *("--no-validate", "--cfg-options", "train_cfg.max_iters=1"),
        *(f"train_dataloader.dataset.data_root={scenes}/", "train_dataloader.num_workers=0"),
        "train_dataloader.persistent_workers=False",
    ]
    env = os.environ | {"PYTHONPATH": str(installed)}
    process = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    (log,) = tmp_path.glob("work_dirs/*/*/*.log")
    assert (log.parents[1] / "iter_1.pth").is_file()
