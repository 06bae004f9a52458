"""Training and testing, with checks before anything is written."""

from slide_mm.engine.config import load_config
from slide_mm.engine.data_report import inspect_data
from slide_mm.engine.reporting import ConfigError, exit_on_user_error
from slide_mm.engine.run import test, train

__all__ = [
    "ConfigError",
    "exit_on_user_error",
    "inspect_data",
    "load_config",
    "test",
    "train",
]
