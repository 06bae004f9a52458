"""Checks of the backbones' arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import PretrainedInit

from slide_mm.layers.arguments import positive_number, refuse, sequence, whole_number
from slide_mm.layers.heads import head_dim_of

NUM_STAGES = 4


def check_arch(arch: Mapping[str, Sequence]) -> dict[str, tuple]:
    """Take an architecture's numbers, one for each stage.

    Raises:
        ValueError: If one is missing or out of its range, or heads don't divide the channels.
    """
    checked = {key: _check_arch_values(f"arch's {key}", arch[key]) for key in arch}
    for embed_dims, num_heads in zip(checked["embed_dims"], checked["num_heads"], strict=True):
        head_dim_of(embed_dims, num_heads)
    return checked


def _check_arch_values(name: str, values: Sequence) -> tuple:
    numbers = sequence(name, values, "give four values")
    if len(numbers) != NUM_STAGES:
        raise refuse(name, values, "give four values")
    take = positive_number if name.endswith("mlp_ratios") else whole_number
    return tuple(take(name, number) for number in numbers)


def check_stages(name: str, stages: Sequence[int]) -> tuple[int, ...]:
    """Take stages from 0, and put them in order.

    Raises:
        ValueError: If they are no different whole numbers from 0 to 3.
    """
    wanted = "name different stages from 0 to 3"
    given = sequence(name, stages, f"{wanted}, such as (0, 1)")
    checked = {whole_number(name, stage, 0, NUM_STAGES - 1, wanted) for stage in given}
    if len(checked) != len(given):
        raise refuse(name, stages, wanted)
    return tuple(sorted(checked))


def check_init_cfg(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> dict | list[dict] | None:
    """Take the two ways to say how a backbone is initialised; see its arguments.

    Returns:
        What MMEngine knows as ``init_cfg``.

    Raises:
        ValueError: If one is of another kind, or both are given.
    """
    if pretrained is not None:
        if not isinstance(pretrained, str) or not pretrained:
            raise refuse("pretrained", pretrained, "give the path of a checkpoint, or None")
        if init_cfg:
            raise refuse("pretrained", pretrained, "give it or init_cfg, not both")
        return {"type": "Pretrained", "checkpoint": pretrained}
    wanted = "give a dict with type, and with checkpoint for type='Pretrained'; or a list of them"
    if init_cfg is None or isinstance(init_cfg, Mapping):
        configs = [init_cfg] if init_cfg else []
    else:
        configs = sequence("init_cfg", init_cfg, wanted)
    for config in configs:
        if not isinstance(config, Mapping) or "type" not in config:
            raise refuse("init_cfg", init_cfg, wanted)
        if is_pretrained(config) and not isinstance(config.get("checkpoint"), str):
            raise refuse("init_cfg", init_cfg, wanted)
    return init_cfg or None


def is_pretrained(config: Mapping[str, Any]) -> bool:
    """Whether an initialisation config names a checkpoint."""
    return config["type"] in ("Pretrained", PretrainedInit)
