"""Other starts than the published ones, for ``init_cfg``."""

import math

from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from slide_mm.layers import DepthwiseConvMlp


@WEIGHT_INITIALIZERS.register_module()
class ConvolutionalMlps:
    """Let the linear layers of PVTv2's and DAT++'s MLPs start as 1 x 1 convolutions do.

    Their weights are normal with a variance of 2 over the output channels (He et al., arXiv
    1502.01852, equation 14), where the authors' have a standard deviation of 0.02. MMDetection's
    PVTv2 starts so. docs/results.md tells what it was worth.

    Example:
        ``backbone=dict(type="SlidePVTv2", init_cfg=dict(type="ConvolutionalMlps"))``
    """

    def __call__(self, module: nn.Module) -> None:
        """Start all such MLPs of a module anew."""
        for layer in module.modules():
            if isinstance(layer, DepthwiseConvMlp):
                for linear in (layer.fc1, layer.fc2):
                    nn.init.normal_(linear.weight, std=math.sqrt(2 / linear.out_features))
