"""From a folder of somebody's images to a config that trains on it."""

from slide_mm.new_config.command import write_config

__all__ = ["write_config"]
