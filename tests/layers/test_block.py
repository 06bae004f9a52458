import pytest
import torch
from torch.nn import functional as F

from slide_mm.layers import Block, DepthwiseConvMlp, LocalPerception, Mlp, SlideAttention


@pytest.mark.parametrize("local", [None, LocalPerception(8)])
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_is_local_mixer_and_mlp_with_their_factors(local, layer_scale):
    torch.manual_seed(0)
    mixer, mlp = SlideAttention(8, 2), Mlp(8, 16)
    block = Block(8, mixer, mlp, local=local, layer_scale=layer_scale).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    factors = [1, 1] if layer_scale is None else [block.scale1.gamma, block.scale2.gamma]
    start = x
    if local is not None:
        image = x.permute(0, 3, 1, 2)
        conv = F.conv2d(image, local.conv.weight, local.conv.bias, padding=1, groups=8)
        start = x + conv.permute(0, 2, 3, 1)
    mixed = start + factors[0] * mixer(block.norm1(start))
    expected = mixed + factors[1] * mlp(block.norm2(mixed))
    torch.testing.assert_close(block(x), expected)


def test_layer_scale_starts_as_given():
    block = Block(8, SlideAttention(8, 2), Mlp(8, 16), layer_scale=1e-5)
    assert torch.equal(block.scale2.gamma, torch.full((8,), 1e-5))


def test_skip_leads_around_the_convolution():
    torch.manual_seed(0)
    plain, skipping = DepthwiseConvMlp(8, 16), DepthwiseConvMlp(8, 16, skip=True)
    skipping.load_state_dict(plain.state_dict())
    with torch.no_grad():  # As if the kernel had its centre one higher.
        plain.dwconv.weight[:, :, 1, 1] += 1
    x = torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(skipping(x), plain(x))
