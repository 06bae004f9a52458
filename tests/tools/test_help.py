from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [path.relative_to(ROOT / "tools") for path in sorted((ROOT / "tools").rglob("*.py"))]


@pytest.mark.parametrize("tool", [x for x in TOOLS if x.name not in ("demo.py", "setup_env.py")])
def test_help_has_an_example_of_files_that_exist(tool, run, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(str(tool), "--help")
    assert exit_info.value.code == 0
    example = capsys.readouterr().out.split("example:")[1].split()
    assert f"tools/{tool.as_posix()}" in example
    for word in example:
        assert not word.startswith(("configs/", "tools/")) or (ROOT / word).exists()
