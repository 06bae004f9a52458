"""Automatic mixed precision without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from slide_mm.engine.config import type_name

_GPU_OPTIONS = ("type", "loss_scale", "dtype", "use_fsdp")


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision on the CPU, where MMEngine's ``AmpOptimWrapper`` refuses to work.

    Backbone and neck compute in bfloat16. The heads stay in float32, for mmcv's operators on the
    CPU (NMS, RoIAlign) know nothing else. bfloat16 has float32's range: gradients need no scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Wrap the forward pass of a training step."""
        with super().optim_context(model):
            model = model.module if is_model_wrapper(model) else model
            extract_feat = torch.autocast("cpu", dtype=torch.bfloat16)(model.extract_feat)

            def extract_float_feat(inputs: Tensor) -> tuple[Tensor, ...]:
                return tuple(feature.float() for feature in extract_feat(inputs))

            model.extract_feat = extract_float_feat
            try:
                yield
            finally:
                del model.extract_feat  # Uncovers the method of the class.


def adapt_amp_to_device(cfg: Config) -> None:
    """Use :class:`CPUAmpOptimWrapper` where the config asks for AMP and there is no GPU."""
    wrapper = cfg.optim_wrapper
    if type_name(wrapper) == "AmpOptimWrapper" and get_device() == "cpu":
        options = {key: value for key, value in wrapper.items() if key not in _GPU_OPTIONS}
        cfg.optim_wrapper = dict(type="CPUAmpOptimWrapper", **options)
