"""The weights that a run starts from."""

from mmengine.config import Config
from torch import nn

from slide_mm.checkpoints import (
    CheckpointError,
    check_state_dict_fits,
    get_state_dict,
    read_checkpoint,
)
from slide_mm.engine.data_paths import is_local

# An original backbone fits 70 % and more of its Slide variant, whose token mixers differ in two
# stages; the next smaller or larger arch of a family fits about 55 %.
_MIN_BACKBONE_FIT = 0.6


def check_checkpoint(cfg: Config, model: nn.Module, whole: bool) -> None:
    """Refuse a ``load_from`` that is missing, damaged or of another architecture.

    MMEngine loads what fits and warns of the rest, and so would train or test random weights.

    Args:
        cfg: The config.
        model: Its model.
        whole: Whether all of the model must fit, as for testing and resuming, or only most of the
            backbone, as for fine-tuning.

    Raises:
        CheckpointError: If the file doesn't exist, cannot be read or doesn't fit.
    """
    path = cfg.get("load_from")
    if not is_local(path):
        return
    checkpoint = read_checkpoint(path)
    if cfg.get("resume") and not {"meta", "message_hub"} <= checkpoint.keys():
        raise CheckpointError(
            f"checkpoint {path} holds weights without the state of a training, so --resume cannot "
            "go on from it: start from its weights with --cfg-options load_from=PATH"
        )
    source = f"checkpoint {path}"
    if whole or not hasattr(model, "backbone"):
        check_state_dict_fits(model, get_state_dict(checkpoint), source)
        return
    weights = get_state_dict(checkpoint, prefix="backbone.")
    if not weights:
        raise CheckpointError(
            f"{source} has no backbone: give weights of a bare backbone as "
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...), not as load_from"
        )
    check_state_dict_fits(model.backbone, weights, source, _MIN_BACKBONE_FIT)
