"""Curves and pictures of a training, where they can be watched."""

from importlib.util import find_spec

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from slide_mm.engine.config import draw_predictions, type_name
from slide_mm.engine.reporting import ConfigError

# MMEngine's backends by the package that each needs.
BACKENDS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
_PICTURES = 8


def watch(cfg: Config, package: str) -> None:
    """Send the logged values to another place too, and pictures of predictions to all of them.

    Args:
        cfg: The config.
        package: A key of ``BACKENDS``.

    Raises:
        ConfigError: If the package isn't installed, or the config has nothing that draws.
    """
    if find_spec(package) is None:
        raise ConfigError(f"--log {package} needs the package of this name: pip install {package}")
    if not cfg.get("visualizer"):
        raise ConfigError(
            f"config {cfg.filename} has no visualizer, which --log {package} sends values by: add "
            "dict(type='DetLocalVisualizer') or dict(type='SegLocalVisualizer')"
        )
    draw_predictions(cfg)
    backends = cfg.visualizer.get("vis_backends") or []
    if BACKENDS[package] not in map(type_name, backends):
        cfg.visualizer.vis_backends = [*backends, dict(type=BACKENDS[package])]


class SomePictures(Hook):
    """Let a visualization hook draw some pictures in each validation, whatever its length."""

    def before_val_epoch(self, runner: Runner) -> None:
        """Fit the interval of the hooks that draw to the number of batches."""
        for hook in runner.hooks:
            if getattr(hook, "draw", False):
                hook.interval = max(1, len(runner.val_dataloader) // _PICTURES)
