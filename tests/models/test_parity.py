"""The baselines, ``slide_stages=()``, are the models that everybody else trains.

Where references differ from each other, a test takes the size or depth at which they don't:

- Microsoft's classification code and timm don't shift windows along a side that one window covers;
  Microsoft's detection code and MMDetection do. We follow the first. At 224 x 224 that is the last
  stage.
- Microsoft's detection code and MMDetection pad a map to whole windows and shift then; timm shifts
  first. We follow the first. It matters where maps are padded and windows shift.
- PVT's authors and MMDetection leave out pixels beyond the last whole patch; we pad them, as
  MMDetection does with ``paddings='corner'``.
- MMDetection gives all layer norms of PVT and PVTv2 an epsilon of 1e-6; the authors', timm's and
  our norms of patches and of reduced maps have 1e-5. The difference is far below what is tested.
"""

import pytest
import timm
import torch

from slide_mm.checkpoints import convert_state_dict
from slide_mm.models import SlidePVT, SlidePVTv2, SlideSwin
from tests.needs import mmdet_backbone

SWIN = {"embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)}


def randomise(model):
    """Make every weight matter, zeros and ones included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()  # MMDetection's Swin returns nothing.
    return model


def features_of_timm(model):
    return lambda image: model.forward_intermediates(image, intermediates_only=True)


def relative_error(ours, theirs):
    """Norm of the difference of two lists of tensors over the norm of the second."""
    ours, theirs = (torch.cat([tensor.flatten() for tensor in list_]) for list_ in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


def assert_same_features_and_gradients(ours, theirs, features_of_theirs, size):
    """Compare all features, and the gradients of a loss by the image and by all weights."""
    weights = convert_state_dict(theirs.state_dict(), ours, "the reference").weights
    ours.eval().load_state_dict(weights, strict=True)
    image = torch.randn(1, 3, *size, requires_grad=True)
    features, references = ours(image), features_of_theirs(image)
    for feature, reference in zip(features, references, strict=True):
        assert feature.shape == reference.shape
        assert (feature - reference).abs().max() < 1e-4 * reference.abs().max()
    image_gradients = []
    for outputs in (features, references):
        image.grad = None
        sum(output.square().mean() for output in outputs).backward()
        image_gradients.append(image.grad)
    assert relative_error(image_gradients[:1], image_gradients[1:]) < 1e-4
    # Gradients change their names, order and shape as the weights do.
    gradients = {
        name: parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    expected = convert_state_dict(gradients, ours, "the reference's gradients").weights
    assert expected.keys() == dict(ours.named_parameters()).keys()
    actual = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert relative_error([actual[name] for name in expected], expected.values()) < 1e-4


@pytest.mark.parametrize(
    ("size", "depths"),
    [((224, 224), (2, 2, 6, 2)), ((252, 336), (1, 1, 1, 1))],
    ids=["224", "padded"],
)
def test_swin_is_timms(size, depths):
    """timm's features come before the output norms; where maps are padded, it mustn't shift."""
    theirs = randomise(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=size, depths=depths)
    )
    ours = SlideSwin({**SWIN, "depths": depths}, slide_stages=())
    for index in ours.out_norms:
        ours.out_norms[index] = torch.nn.Identity()
    assert_same_features_and_gradients(ours, theirs, features_of_timm(theirs), size)


@pytest.mark.parametrize(
    ("size", "depths"),
    [((224, 224), (2, 2, 6, 1)), ((250, 334), (2, 2, 6, 2))],
    ids=["224", "padded"],
)
def test_swin_is_mmdets(size, depths):
    """At 224 x 224, where one window covers the last stage, MMDetection mustn't shift it."""
    theirs = randomise(mmdet_backbone("SwinTransformer")(depths=depths))
    ours = SlideSwin({**SWIN, "depths": depths}, slide_stages=())
    assert_same_features_and_gradients(ours, theirs, theirs, size)


@pytest.mark.parametrize("size", [(224, 224), (250, 334)], ids=["224", "padded"])
def test_pvt_is_mmdets(size):
    theirs = randomise(mmdet_backbone("PyramidVisionTransformer")(paddings=["corner"] * 4))
    assert_same_features_and_gradients(SlidePVT("small", slide_stages=()), theirs, theirs, size)


@pytest.mark.parametrize("size", [(224, 224), (250, 334)], ids=["224", "padded"])
def test_pvtv2_is_timms(size):
    theirs = randomise(timm.create_model("pvt_v2_b2"))
    ours = SlidePVTv2("b2", slide_stages=())
    assert_same_features_and_gradients(ours, theirs, features_of_timm(theirs), size)


@pytest.mark.parametrize("size", [(224, 224), (250, 334)], ids=["224", "padded"])
def test_pvtv2_is_mmdets(size):
    theirs = randomise(mmdet_backbone("PyramidVisionTransformerV2")())
    assert_same_features_and_gradients(SlidePVTv2("b2", slide_stages=()), theirs, theirs, size)
