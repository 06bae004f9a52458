import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch.optim import SGD

from slide_mm.models import FAMILIES
from tests.models.archs import build
from tests.needs import needs_pytorch


class Features(BaseModel):
    """A model that learns to make features small."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode="loss"):
        return {"loss": sum(x.square().mean() for x in self.backbone(inputs))}


def train(compiled):
    """Losses of steps on images of two sizes."""
    model = Features(build(FAMILIES["slide-swin"], drop_path_rate=0.0))
    if compiled:  # As MMEngine's runner does with compile=dict(dynamic=False).
        model.train_step = torch.compile(model.train_step, dynamic=False)
    optimizer = OptimWrapper(SGD(model.parameters(), 0.1))
    losses = []
    for size in ((64, 96), (96, 64), (64, 96)):
        image = torch.linspace(-1, 1, 6 * size[0] * size[1]).view(2, 3, *size)
        losses.append(model.train_step({"inputs": image}, optimizer)["loss"].item())
    return losses


@pytest.mark.slow
@needs_pytorch("2.7", "compiling for a second size")
def test_compiled_training_on_two_sizes():
    losses = train(compiled=True)
    assert losses == pytest.approx(train(compiled=False), rel=1e-4)
    assert losses[2] < losses[0]
