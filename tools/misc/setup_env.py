#!/usr/bin/env python3
"""Makes the environment that the demo and the tests run in: the pinned set of requirements.txt,
with mmcv's operators compiled from source, and slide_mm itself.

``make`` calls it before everything else. Once the environment stands it returns at once; after an
interruption it goes on where it stopped. It uses the standard library alone and is written for
Python 3.8, so that an old Python can say that it is too old.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"
BUILD_TOOLS = ("ninja", "packaging", "pip", "setuptools", "wheel")

OLDEST_PYTHON, FIRST_UNTESTED_PYTHON = (3, 11), (3, 14)
GIB = 2**30
ENVIRONMENT_GIB = 8.5
DOWNLOADS_GIB = 4
COMPILE_JOB_GIB = 2.5  # the largest file of mmcv, compiled against torch 2.10 by g++ 12

# Each part of the environment that may fail to load is loaded here.
IMPORTS = "import mmcv._ext, mmdet, mmengine, mmseg, sklearn, timm, torch, torchvision"

# The operators are checked against results that do not come from mmcv.
OPERATORS = """
import mmcv._ext, torch, torchvision
from mmcv.ops import nms, roi_align
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
scores = torch.tensor([0.8, 0.9, 0.7])
kept, expected = nms(boxes, scores, 0.5)[1], torchvision.ops.nms(boxes, scores, 0.5)
if kept.tolist() != expected.tolist():
    raise SystemExit(f"mmcv.ops.nms keeps boxes {kept.tolist()}, not {expected.tolist()}")
pooled = roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), (2, 2))
if pooled.tolist() != [[[[1.0, 1.0], [1.0, 1.0]]]]:
    raise SystemExit(f"mmcv.ops.roi_align of ones gives {pooled.tolist()}")
"""


class SetupError(Exception):
    """One line for people: what is wrong and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make or complete slide_mm's environment.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="its folder")
    venv = parser.parse_args().venv.absolute()
    if is_current(venv):
        return 0
    try:
        set_up(venv)
    except SetupError as error:
        print(f"setup_env: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup_env: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def set_up(venv: Path) -> None:
    """Runs all steps; each finds out by itself what is already done."""
    steps = (
        ("checking this machine", check_machine),
        ("making the virtual environment", make_venv),
        ("installing torch and the other packages (4 GB to download at first)", install_packages),
        ("installing mmcv (10 to 20 minutes of compiling on two cores at first)", install_mmcv),
        ("verifying mmcv's operators", verify_operators),
        ("installing slide_mm itself", install_slide_mm),
        ("verifying the whole", verify_whole),
    )
    for number, (title, step) in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {title}", flush=True)
        step(venv)
    stamp_of(venv).write_text(fingerprint())
    print(f"environment ready: {venv}", flush=True)


def stamp_of(venv: Path) -> Path:
    return venv / "slide_mm.stamp"


def fingerprint() -> str:
    """Changes whenever the environment has to be looked at again."""
    inputs = (REQUIREMENTS, ROOT / "pyproject.toml", ROOT / "setup.py", Path(__file__))
    digest = hashlib.sha256(str(ROOT).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(venv: Path) -> bool:
    stamp = stamp_of(venv)
    return stamp.is_file() and python_of(venv).exists() and stamp.read_text() == fingerprint()


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def read_pins() -> dict[str, str]:
    """The lines of requirements.txt by package name."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return {line.partition("==")[0]: line for line in lines if line}


# Step 1: nothing long starts on a machine where it cannot end well.


def check_machine(venv: Path) -> None:
    check_python()
    check_folder(venv)
    check_compiler()
    check_gpu()
    check_disk(venv)


def check_python() -> None:
    version = sys.version_info[:2]
    if not OLDEST_PYTHON <= version < FIRST_UNTESTED_PYTHON:
        raise SetupError(
            f"Python {version[0]}.{version[1]} ({sys.executable}) does not fit: the pinned set "
            "needs 3.11 to 3.13; name one, as in `make test PYTHON=python3.11`"
        )
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: install its venv module "
            f"(Debian, Ubuntu: apt-get install python{version[0]}.{version[1]}-venv)"
        )
    headers = sysconfig.get_paths()["include"]
    if not Path(headers, "Python.h").is_file():
        raise SetupError(
            f"Python.h is not in {headers}: install the headers of {sys.executable} "
            f"(Debian, Ubuntu: apt-get install python{version[0]}.{version[1]}-dev)"
        )


def check_folder(venv: Path) -> None:
    if venv.is_file() or (
        venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file()
    ):
        raise SetupError(
            f"{venv} exists and is no virtual environment: remove it or name another folder, as "
            "in `make test VENV=.venv-slide`"
        )
    theirs = sorted(path.stem for path in venv.glob("lib/python*/site-packages/mm*.dist-info"))
    if theirs:
        raise SetupError(
            f"{venv} has OpenMMLab's own packages ({', '.join(theirs)}), which the pinned set "
            "would break: name another folder, as in `make test VENV=.venv-slide`, or call the "
            f"tools with its Python, as in `{python_of(venv)} tools/demo.py`"
        )


def check_compiler() -> None:
    compiler = os.environ.get("CXX") or "c++"
    remedy = (
        "install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++) or name "
        "yours in the variable CXX"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cpp")
        source.write_text("#include <optional>\nint main() { return *std::optional<int>(0); }\n")
        command = [*shlex.split(compiler), "-std=c++17", "-fPIC", str(source), "-o", folder + "/a"]
        try:
            trial = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise SetupError(
                f"no C++ compiler: `{compiler}` does not run ({error.strerror}); {remedy}"
            ) from None
    if trial.returncode != 0:
        raise SetupError(
            f"the C++ compiler `{compiler}` does not compile C++17 "
            f"({last_error(trial.stdout + trial.stderr)}); {remedy}"
        )


def check_gpu() -> None:
    """With a visible GPU mmcv compiles CUDA operators, which takes nvcc."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not shutil.which("nvidia-smi"):
        return
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    cuda_home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    if "GPU 0" in listing.stdout and not (
        shutil.which("nvcc") or Path(cuda_home, "bin", "nvcc").is_file()
    ):
        raise SetupError(
            "there is an NVIDIA GPU but no nvcc to compile mmcv's operators for it: install the "
            "CUDA 12.8 toolkit and set CUDA_HOME, or stay on the CPU with "
            "`export CUDA_VISIBLE_DEVICES=` before make"
        )


def check_disk(venv: Path) -> None:
    missing = max(0.0, ENVIRONMENT_GIB - size_of(venv) / GIB)
    downloads = min(DOWNLOADS_GIB, missing)
    target, temporary = nearest_folder(venv), Path(tempfile.gettempdir())
    if target.stat().st_dev == temporary.stat().st_dev:
        check_space(target, missing + downloads, "name another folder with VENV=")
    else:
        check_space(target, missing, "name another folder with VENV=")
        check_space(temporary, downloads, "name another folder in the variable TMPDIR")


def check_space(folder: Path, needed: float, remedy: str) -> None:
    free = shutil.disk_usage(folder).free / GIB
    if free < needed:
        raise SetupError(
            f"the disk of {folder} has {free:.1f} GiB free, {needed:.1f} are needed for the "
            f"environment and its downloads: make room or {remedy}"
        )


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


# Steps 2 and 3: everything but mmcv.


def make_venv(venv: Path) -> None:
    stamp_of(venv).unlink(missing_ok=True)
    if failure_of(venv, "import pip, sys; assert sys.version_info >= (3, 11)"):
        run([sys.executable, "-m", "venv", "--clear", str(venv)], "venv failed")
    pins = read_pins()
    pip_install(venv, *(pins[name] for name in BUILD_TOOLS))


def install_packages(venv: Path) -> None:
    pins = read_pins()
    del pins["onedl-mmcv"]
    # Both OpenCV packages are asked for by others and fill one folder: the one without a window
    # system comes last and stays, for machines that have no libGL.
    pip_install(venv, "--no-deps", pins["opencv-python"])
    pip_install(venv, *pins.values())


def failure_of(venv: Path, code: str) -> str:
    """Runs code in the environment; its last line of output if it fails, else nothing."""
    if not python_of(venv).exists():
        return f"{python_of(venv)} does not exist"
    trial = subprocess.run([str(python_of(venv)), "-c", code], capture_output=True, text=True)
    return last_error(trial.stdout + trial.stderr) if trial.returncode else ""


def run(command: list[str], failure: str, **environment: str) -> None:
    if subprocess.run(command, env={**os.environ, **environment}).returncode != 0:
        raise SetupError(f"{failure}: see above; repair it and run the same command again to go on")


def pip_command(venv: Path, *arguments: str) -> list[str]:
    pip = [str(python_of(venv)), "-m", "pip", "--disable-pip-version-check"]
    return [*pip, *arguments]


def pip_install(venv: Path, *arguments: str) -> None:
    # The pinned build tools build what comes as source. A cache would hold the 4 GB once more.
    options = ("--no-build-isolation", "--no-cache-dir")
    command = pip_command(venv, "install", *options, *arguments)
    run(command, "pip failed", PYTHONWARNINGS="ignore")


# Steps 4 and 5: mmcv.


def install_mmcv(venv: Path, *options: str) -> None:
    """Builds mmcv against the installed torch, or takes the wheel of an earlier build."""
    arguments = ("-v", "--no-deps", "--no-build-isolation", *options, read_pins()["onedl-mmcv"])
    log = venv / "mmcv-build.log"
    environment = {**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS") or str(compile_jobs())}
    progress = CompileProgress()
    print(f"the compiler's output goes to {log}", flush=True)
    build = subprocess.Popen(
        pip_command(venv, "install", *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    with log.open("w", encoding="utf-8") as log_file:
        for line in build.stdout:
            log_file.write(line)
            progress.read(line)
    if build.wait() != 0:
        problem = last_error(log.read_text(encoding="utf-8"))
        raise SetupError(
            f"mmcv did not build ({problem}): see {log}; repair it and run the same command again "
            "to go on"
        )


class CompileProgress:
    """Says how far ninja is, from its lines that begin with [done/total]."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.began = self.said = time.monotonic()

    def read(self, line: str) -> None:
        found = re.match(r"\s*\[(\d+)/(\d+)\] ", line)
        now = time.monotonic()
        if found and (now - self.said >= self.every or found[1] == found[2]):
            self.said = now
            print(self.say(int(found[1]), int(found[2]), now - self.began), flush=True)

    @staticmethod
    def say(done: int, total: int, seconds: float) -> str:
        left = seconds / done * (total - done)
        return (
            f"mmcv: {done}/{total} files compiled, {seconds / 60:.0f} min passed, "
            f"about {left / 60:.0f} min left"
        )


def compile_jobs() -> int:
    """As many as there are cores, as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own, "max" where there is none
    if limit.is_file() and limit.read_text().strip().isdigit():
        memory = min(memory, int(limit.read_text()))
    return max(1, min(os.cpu_count() or 1, int(memory / GIB / COMPILE_JOB_GIB)))


def last_error(output: str) -> str:
    """The compiler's last complaint or, without one, Python's or pip's."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for complaint in (r": (fatal )?error: |Killed|[Nn]o space left", r"Error: |ERROR: "):
        found = [line for line in lines if re.search(complaint, line)]
        if found:
            return found[-1]
    return lines[-1] if lines else "no output"


def verify_operators(venv: Path) -> None:
    """pip's cache may hold mmcv built against another torch, or without any: then build anew."""
    problem = failure_of(venv, OPERATORS)
    if not problem:
        return
    print(f"mmcv does not work with this torch ({problem}): building it anew", flush=True)
    install_mmcv(venv, "--no-cache-dir", "--force-reinstall", "--no-binary=onedl-mmcv")
    problem = failure_of(venv, OPERATORS)
    if problem:
        raise SetupError(f"mmcv was built but does not work ({problem}): see {venv}/mmcv-build.log")


# Steps 6 and 7: slide_mm and the whole.


def install_slide_mm(venv: Path) -> None:
    pip_install(venv, "--quiet", "--no-deps", "--editable", str(ROOT))


def verify_whole(venv: Path) -> None:
    run(pip_command(venv, "check"), "the packages do not fit together")
    problem = failure_of(venv, IMPORTS)
    if problem:
        raise SetupError(
            f"a package does not load ({problem}): remove {venv} and run the same command again"
        )


if __name__ == "__main__":
    sys.exit(main())
