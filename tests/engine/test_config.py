import sys

import pytest

from slide_mm.engine import ConfigError
from slide_mm.engine.config import load_config


def test_options_name_modules_to_import(tmp_path, monkeypatch):
    (tmp_path / "named_by_an_option.py").touch()
    config = tmp_path / "config.py"
    config.write_text("batch_size = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_config(config)
    assert "named_by_an_option" not in sys.modules
    load_config(config, {"custom_imports": {"imports": ["named_by_an_option"]}})
    assert sys.modules.pop("named_by_an_option")
    with pytest.raises(ConfigError, match=r"--cfg-options does not fit .*no_such_module"):
        load_config(config, {"custom_imports": {"imports": "no_such_module"}})
