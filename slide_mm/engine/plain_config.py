"""Configs read as data: what MMEngine writes of a config is a program, and isn't run here."""

import ast
import os
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from slide_mm.checkpoints import CheckpointError
from slide_mm.checkpoints.folders import read_facts
from slide_mm.engine.reporting import ConfigError

CONFIG = "config.py"


def read_packed_config(folder: str | os.PathLike) -> Config:
    """Read the config of a folder that ``tools/model_converters/pack.py`` has written.

    Raises:
        ConfigError: If it is none, or a part of one.
    """
    path = os.path.join(folder, CONFIG)
    try:
        read_facts(folder)  # The file that a folder is not whole without.
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (CheckpointError, OSError, ValueError) as error:
        raise ConfigError(
            f"config {folder} is a folder, and no whole one of tools/model_converters/pack.py "
            f"({error}): give a config file"
        ) from error
    return read_plain_config(text, path)


def read_plain_config(text: str, origin: str) -> Config:
    """Read a config as MMEngine writes it, flattened, and import the modules that it names.

    Args:
        text: Lines such as ``model = dict(type='MaskRCNN')``, of constants, lists, tuples, sets and
            dicts.
        origin: Where it comes from; the config's ``filename``.

    Raises:
        ConfigError: If it is anything else, or a module cannot be imported.
    """
    try:
        cfg = Config(read_values(text), text, origin)
        import_modules_from_strings(**(cfg.get("custom_imports") or {"imports": []}))
    except Exception as error:  # Of modules, too.
        raise ConfigError(
            f"config {origin} cannot be read: {type(error).__name__}: {error}"
        ) from error
    return cfg


def read_values(text: str) -> dict[str, Any]:
    """Read the values of a flattened config by name.

    Raises:
        ValueError: If there is a line that gives a name no constant value.
    """
    values = {}
    for line in ast.parse(text).body:
        targets = getattr(line, "targets", [])
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise ValueError(f"line {line.lineno} gives no name a value")
        values[targets[0].id] = _evaluate(line.value)
    return values


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        items = [_evaluate(argument) for argument in node.args]
        return dict(*items, **{pair.arg: _evaluate(pair.value) for pair in node.keywords})
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _evaluate(value) for key, value in pairs}
    if isinstance(node, ast.List | ast.Tuple):
        kind = list if isinstance(node, ast.List) else tuple
        return kind(map(_evaluate, node.elts))
    return ast.literal_eval(node)
