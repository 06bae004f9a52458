"""What the tools call: training, testing and measuring, with checks before anything is written."""

from slide_mm.engine.benchmarking import add_benchmark_options, run_benchmark
from slide_mm.engine.config import load_config
from slide_mm.engine.data_report import format_data_report, inspect_data
from slide_mm.engine.reporting import ConfigError, exit_on_user_error
from slide_mm.engine.run import test, train

__all__ = [
    "ConfigError",
    "add_benchmark_options",
    "exit_on_user_error",
    "format_data_report",
    "inspect_data",
    "load_config",
    "run_benchmark",
    "test",
    "train",
]
