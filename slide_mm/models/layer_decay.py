"""Learning rates that fall from the head of a model to its first layers."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from slide_mm.layers.arguments import refuse
from slide_mm.models.backbone import HierarchicalBackbone


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, with learning rates that decay with the depth below the head.

    BEiT, arXiv 2106.08254, section 3.2, fine-tunes so; a layer is a block of the backbone, see
    :meth:`~slide_mm.models.backbone.HierarchicalBackbone.get_layer_depth`. In a config::

        optim_wrapper = dict(
            constructor="LayerDecayConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.9, norm_decay_mult=0.0),
        )

    ``layer_decay_rate`` is the factor from a layer to the one below it, above 0 and up to 1. All
    other keys of ``paramwise_cfg`` are MMEngine's.

    Raises:
        ValueError: If there is no such rate, or the model has no backbone of ours.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any
    ) -> None:
        """Add a group for each parameter of a module."""
        super().add_params(params, module, prefix, **kwargs)
        if not prefix:  # The model itself; its parts have come by here before.
            self._decay(params, module)

    def _decay(self, params: list[dict[str, Any]], model: nn.Module) -> None:
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise refuse("paramwise_cfg.layer_decay_rate", rate, "give a factor from 0 to 1")
        prefix = "" if isinstance(model, HierarchicalBackbone) else "backbone."
        backbone = model.get_submodule(prefix.rstrip("."))
        if not isinstance(backbone, HierarchicalBackbone):
            raise refuse("model.backbone", type(backbone).__name__, "give one of slide_mm's")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in params:
            depth, num_layers = backbone.get_layer_depth(names[id(group["params"][0])], prefix)
            group["lr"] = group.get("lr", self.base_lr) * rate ** (num_layers - 1 - depth)
