"""A run's config without what belongs to the machine that it ran on."""

import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from slide_mm.engine.config import iter_nodes, type_name
from slide_mm.engine.plain_config import read_values
from slide_mm.engine.reporting import ConfigError

# What the runner takes, but for what says where this run went and what it began with. Variables
# that a config names for its own use are no part of this.
_OF_THE_RUN = {"work_dir", "load_from", "resume", "launcher", "experiment_name", "cfg"}
_KEPT = inspect.signature(Runner).parameters.keys() - _OF_THE_RUN
_KEPT |= {"custom_imports", "runner_type", "tta_model", "tta_pipeline"}
_DATA = re.compile(r"(train|val|test)_(dataloader|evaluator)|tta_pipeline")
# Where files are fetched from and written to.
_BACKENDS = ("backend_args", "file_client_args")
_OUTPUTS = ("out_dir", "test_out_dir", "save_dir", "outfile_prefix", "output_dir", "out_file_path")
# Hooks of others may write anywhere, and the model needs none.
_LIBRARIES = ("mmengine", "mmcv", "mmdet", "mmseg", "slide_mm")
_OUTSIDE = re.compile(r"[/~\\]|[A-Za-z]:[\\/]|(.*[/\\])?\.\.([/\\]|$)")
_ADDRESS = re.compile(r"\w[\w+.-]*://")


def clean_config(cfg: Config) -> str:
    """Write a config down without what other machines don't have.

    Paths of data that lead out of the folder that one works in become paths below ``data/``, the
    next folder's ``data_2/`` and so on. Outputs, loggers but the local one, hooks of other
    libraries and weights to start from are left out.

    Args:
        cfg: The config.

    Raises:
        ConfigError: If another part of it names such a path, or it holds objects that cannot be
            written.
    """
    cleaned = Config({key: value for key, value in cfg.to_dict().items() if key in _KEPT})
    for key, node in iter_nodes(dict(cleaned)):
        for name in [*_BACKENDS, *_OUTPUTS]:
            if key and name in node:
                del node[name]
    _clean_model(cleaned)
    _clean_hooks(cleaned)
    if cleaned.get("visualizer"):
        cleaned.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    places = _Places()
    for key in filter(_DATA.fullmatch, list(cleaned)):
        places.note_roots(cleaned[key])
    for key in filter(_DATA.fullmatch, list(cleaned)):
        cleaned[key] = places.replace(cleaned[key])
    for key, text in _iter_texts(cleaned.to_dict()):
        if _OUTSIDE.match(text):
            raise ConfigError(
                f"{key} of the config is {text}, which others don't have: leave it "
                "out of a config that you give with --config"
            )
    return _write(cleaned)


def _write(cfg: Config) -> str:
    for _, node in iter_nodes(dict(cfg)):
        if isinstance(node.get("type"), type):
            node.type = f"{node.type.__module__}.{node.type.__qualname__}"
    try:
        text = cfg.pretty_text
        written = read_values(text)
    except Exception as error:  # Of the text's own syntax, too.
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the config holds what cannot be written down: {reason}") from error
    if written != cfg.to_dict():
        raise ConfigError("the config holds objects, which cannot be written down")
    return text


def _clean_model(cfg: Config) -> None:
    """Leave out weights that parts would start from: the folder has those that they end with."""
    for _, node in iter_nodes(dict(model=cfg.model)):
        given = node.get("init_cfg")
        parts = given if isinstance(given, list | tuple) else [given]
        kept = [part for part in parts if type_name(part) != "Pretrained"]
        if len(kept) < len(parts):
            node.init_cfg = kept or None
        if node.get("pretrained"):
            node.pretrained = None


def _clean_hooks(cfg: Config) -> None:
    scope = cfg.get("default_scope")
    with HOOKS.switch_scope_and_registry(scope) as registry:

        def is_known(hook: dict[str, Any] | None) -> bool:
            kind = (hook or {}).get("type")
            kind = registry.get(kind) if isinstance(kind, str) else kind
            return not hook or getattr(kind, "__module__", "").partition(".")[0] in _LIBRARIES

        hooks = (cfg.get("default_hooks") or {}).items()
        cfg.default_hooks = {name: hook for name, hook in hooks if is_known(hook)}
        cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or [] if is_known(hook)]


class _Places:
    """Names for folders of this machine, and paths below them."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def note_roots(self, node: Any) -> None:
        """Name the folders that datasets lie in."""
        for _, part in iter_nodes(node):
            root = part.get("data_root")
            if isinstance(root, str) and _is_elsewhere(root):
                self._name(root)

    def replace(self, node: Any) -> Any:
        """Put names in the place of folders, in all texts below a node but names of classes."""
        if isinstance(node, dict):
            items = node.items()
            return type(node)({k: x if k == "metainfo" else self.replace(x) for k, x in items})
        if isinstance(node, list | tuple):
            return type(node)(map(self.replace, node))
        return self._replace_text(node) if isinstance(node, str) else node

    def _replace_text(self, text: str) -> str:
        if not _is_elsewhere(text):
            return text
        path = os.path.normpath(text)
        roots = [root for root in self.names if f"{path}/".startswith(f"{root.rstrip('/')}/")]
        root = max(roots, key=len, default=None)
        if root is None:
            root = os.path.dirname(path) if os.path.splitext(path)[1] else path
            self._name(root)
        rest = path.removeprefix(root).strip("/")
        return self.names[root] + rest + ("/" if rest and text.endswith("/") else "")

    def _name(self, root: str) -> None:
        number = len(self.names) + 1
        self.names.setdefault(os.path.normpath(root), f"data_{number}/" if number > 1 else "data/")


def _is_elsewhere(path: str) -> bool:
    return bool(_OUTSIDE.match(path) or _ADDRESS.match(path))


def _iter_texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts below a node, keys of dicts included, each with its dotted key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            if name != "metainfo":
                yield from _iter_texts(str(name), key)
                yield from _iter_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _iter_texts(value, f"{key}.{index}")
