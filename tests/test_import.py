import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_needs_neither_mmcv_nor_mmdet_nor_mmseg():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('mmcv', 'mmdet', 'mmseg'))); "
    code = "import torch, slide_mm; from mmengine.registry import MODELS; "
    build = "print(type(MODELS.build(dict(type='SlidePVT', arch='tiny'))).__name__)"
    process = run(blocked + code + build)
    assert process.stdout == "SlidePVT\n", process.stderr


def test_importing_without_mmengine_says_what_to_install():
    hidden = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mmengine':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import slide_mm"
    )
    process = run(hidden)
    assert process.returncode == 1
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: slide_mm registers its backbones with MMEngine")
    assert "pip install onedl-mmengine" in last_line
