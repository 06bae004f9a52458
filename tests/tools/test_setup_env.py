import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "misc" / "setup_env.py"
NINJA_OUTPUT = """\
  [1/2] c++ -MMD -MF first.o.d -c first.cpp
  [2/2] c++ -MMD -MF second.o.d -c second.cpp
  second.cpp:7:10: fatal error: torch/extension.h: No such file or directory
  ninja: build stopped: subcommand failed.
  RuntimeError: Error compiling objects for extension
  ERROR: Failed building wheel for onedl-mmcv
"""


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_steps(setup_env, monkeypatch, tmp_path):
    """Replaces the steps; returns the names of those that ran."""
    ran = []

    def make_venv(venv):
        setup_env.python_of(venv).parent.mkdir(parents=True, exist_ok=True)
        setup_env.python_of(venv).touch()
        ran.append("make_venv")

    def fake(name):
        return lambda venv: ran.append(name)

    monkeypatch.setattr(setup_env, "make_venv", make_venv)
    names = ("check_machine", "install_packages", "install_mmcv", "verify_operators")
    for name in (*names, "install_slide_mm", "verify_whole"):
        monkeypatch.setattr(setup_env, name, fake(name))
    monkeypatch.setattr(sys, "argv", ["setup_env.py", "--venv", str(tmp_path / "venv")])
    return ran


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("limits", [((4, 0), (5, 0)), ((3, 0), (3, 1))], ids=["old", "new"])
def test_python_that_does_not_fit(setup_env, monkeypatch, limits):
    monkeypatch.setattr(setup_env, "OLDEST_PYTHON", limits[0])
    monkeypatch.setattr(setup_env, "FIRST_UNTESTED_PYTHON", limits[1])
    with pytest.raises(setup_env.SetupError, match=r"^Python 3\.\d+ .*`make test PYTHON="):
        setup_env.check_python()


def test_missing_python_headers(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(setup_env.SetupError, match=r"Python\.h is not in .*-dev"):
        setup_env.check_python()


def test_missing_venv_module(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_env.SetupError, match=r"virtual environments: .*-venv"):
        setup_env.check_python()


def test_no_compiler_on_the_path(setup_env, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup_env.SetupError, match=r"no C\+\+ compiler: `c\+\+`.*install"):
        setup_env.check_compiler()


def test_compiler_that_does_not_compile(setup_env, monkeypatch, tmp_path):
    old = program(tmp_path / "old", "echo 'c++: error: unrecognized option -std=c++17' >&2; exit 1")
    monkeypatch.setenv("CXX", old)
    with pytest.raises(setup_env.SetupError, match=r"does not compile C\+\+17 .*unrecognized"):
        setup_env.check_compiler()


def test_named_compiler_with_arguments(setup_env, monkeypatch, tmp_path):
    good = program(tmp_path / "good", '[ "$1" = --quick ]')
    monkeypatch.setenv("CXX", f"{good} --quick")
    setup_env.check_compiler()


def test_gpu_without_nvcc(setup_env, monkeypatch, tmp_path):
    program(tmp_path / "nvidia-smi", "echo 'GPU 0: a card'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(setup_env.SetupError, match="no nvcc"):
        setup_env.check_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    setup_env.check_gpu()


def test_full_disk(setup_env, monkeypatch, tmp_path):
    free = 3 * setup_env.GIB
    usage = types.SimpleNamespace(free=free)
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(setup_env.SetupError, match=rf"{tmp_path} has 3\.0 GiB free, .*make room"):
        setup_env.check_disk(tmp_path / "not" / "there" / "yet")
    # What an interrupted set-up left counts.
    monkeypatch.setattr(setup_env, "size_of", lambda folder: 8 * setup_env.GIB)
    setup_env.check_disk(tmp_path)


def test_folder_that_is_no_environment(setup_env, tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(setup_env.SetupError, match="is no virtual environment"):
        setup_env.check_folder(tmp_path)
    (tmp_path / "pyvenv.cfg").touch()
    setup_env.check_folder(tmp_path)


def test_folder_with_openmmlabs_own_packages(setup_env, tmp_path):
    (tmp_path / "pyvenv.cfg").touch()
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "onedl_mmcv-2.3.6.dist-info").mkdir(parents=True)
    setup_env.check_folder(tmp_path)
    (packages / "mmcv-2.1.0.dist-info").mkdir()
    message = rf"^{tmp_path} has OpenMMLab's own packages \(mmcv-2\.1\.0\), .*name another folder"
    with pytest.raises(setup_env.SetupError, match=message):
        setup_env.check_folder(tmp_path)


def test_wrong_machine_is_one_line_and_leaves_nothing(tmp_path):
    venv = tmp_path / "venv"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--venv", venv],
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert re.fullmatch(r"setup_env: no C\+\+ compiler: `no-such-compiler`.*\n", run.stderr)
    assert not venv.exists()


def test_compile_jobs_follow_cores_and_memory(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.os, "cpu_count", lambda: 4)
    for job_gib, expected in ((1e6, 1), (1e-6, 4)):
        monkeypatch.setattr(setup_env, "COMPILE_JOB_GIB", job_gib)
        assert setup_env.compile_jobs() == expected


def test_progress_line(setup_env):
    line = setup_env.CompileProgress.say(23, 78, 240.0)
    assert line == "mmcv: 23/78 files compiled, 4 min passed, about 10 min left"


def test_failing_build_shows_progress_log_and_error(setup_env, monkeypatch, tmp_path, capsys):
    (tmp_path / "output").write_text(NINJA_OUTPUT)
    pip = program(tmp_path / "pip", f"cat {tmp_path}/output; exit 1")
    monkeypatch.setattr(setup_env, "pip_command", lambda venv, *arguments: [pip])
    log = tmp_path / "mmcv-build.log"
    with pytest.raises(setup_env.SetupError, match=rf"second\.cpp:7:10: fatal error.*see {log}"):
        setup_env.install_mmcv(tmp_path)
    assert "mmcv: 2/2 files compiled" in capsys.readouterr().out
    assert log.read_text() == NINJA_OUTPUT


@pytest.mark.parametrize(
    ("failures", "builds", "works"),
    [(("",), 0, True), (("bad", ""), 1, True), (("bad", "bad"), 1, False)],
    ids=["fits", "cached for another torch", "never fits"],
)
def test_mmcv_is_built_anew_once(setup_env, monkeypatch, tmp_path, failures, builds, works):
    built, failures = [], list(failures)
    monkeypatch.setattr(setup_env, "failure_of", lambda venv, code: failures.pop(0))
    monkeypatch.setattr(setup_env, "install_mmcv", lambda venv, *options: built.append(options))
    if works:
        setup_env.verify_operators(tmp_path)
    else:
        with pytest.raises(setup_env.SetupError, match=r"does not work \(bad\)"):
            setup_env.verify_operators(tmp_path)
    options = ("--no-cache-dir", "--force-reinstall", "--no-binary=onedl-mmcv")
    assert built == [options] * builds


def test_installed_operators_pass_the_check(setup_env):
    exec(setup_env.OPERATORS, {})


def test_second_run_does_nothing_until_an_input_changes(
    setup_env, fake_steps, monkeypatch, tmp_path
):
    assert setup_env.main() == 0
    assert len(fake_steps) == 7
    assert setup_env.main() == 0
    assert len(fake_steps) == 7
    changed = tmp_path / "requirements.txt"
    changed.write_text(setup_env.REQUIREMENTS.read_text() + "another==1.0\n")
    monkeypatch.setattr(setup_env, "REQUIREMENTS", changed)
    assert setup_env.main() == 0
    assert len(fake_steps) == 14


@pytest.mark.parametrize(("error", "code"), [("SetupError", 1), ("KeyboardInterrupt", 130)])
def test_unfinished_run_is_repeated(setup_env, fake_steps, monkeypatch, capsys, error, code):
    def fail(venv):
        raise getattr(setup_env, error, KeyboardInterrupt)("a reason")

    with monkeypatch.context() as context:
        context.setattr(setup_env, "verify_whole", fail)
        assert setup_env.main() == code
    assert capsys.readouterr().err.count("\n") == 1
    assert setup_env.main() == 0
    assert fake_steps.count("install_mmcv") == 2


def test_requirements_are_pins_that_fit_the_package(setup_env):
    pins = {name: Requirement(line) for name, line in setup_env.read_pins().items()}
    versions = {}
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        versions[name] = specifier.version
    wanted = [Requirement(line) for line in importlib.metadata.requires("slide-mm")]
    pinned = [requirement for requirement in wanted if requirement.name in versions]
    assert {"torch", "timm", "numpy", "onedl-mmcv"} <= {requirement.name for requirement in pinned}
    for requirement in pinned:
        assert versions[requirement.name] in requirement.specifier, requirement
    assert set(setup_env.BUILD_TOOLS) <= set(versions)


def test_installing_slide_mm_alone_leaves_mm_packages_alone():
    core = [line for line in importlib.metadata.requires("slide-mm") if "extra ==" not in line]
    assert {Requirement(line).name for line in core} == {"numpy", "timm", "torch"}


def test_pre_commit_uses_the_pinned_ruff(setup_env):
    version = setup_env.read_pins()["ruff"].partition("==")[2]
    assert f"rev: v{version} " in (ROOT / ".pre-commit-config.yaml").read_text()
