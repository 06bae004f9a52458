import pytest
import torch

from slide_mm.layers import SlideAttention
from slide_mm.ops.reference import definition


def test_layer_is_projection_judge_projection():
    torch.manual_seed(0)
    layer = SlideAttention(24, 3, kernel_size=5).double().eval()
    x = torch.randn(2, 6, 7, 24, dtype=torch.float64)
    query, key, value = layer.qkv(x).chunk(3, dim=-1)
    split = (2, 6, 7, 3, 8)
    attended = definition(
        query.reshape(split),
        key.reshape(split),
        value.reshape(split),
        torch.eye(25).view(25, 5, 5) + layer.deformed_kernel,
        layer.shift_bias,
        layer.relative_position_bias_table,
    )
    torch.testing.assert_close(layer(x), layer.proj(attended.flatten(-2)))


def test_learned_path_starts_as_pytorchs_depthwise_convolution():
    torch.manual_seed(0)
    layer = SlideAttention(64, 1)
    convolution = torch.nn.Conv2d(64, 64 * 9, 3, padding=1, groups=64)
    for ours, theirs in (
        (layer.deformed_kernel, convolution.weight),
        (layer.shift_bias, convolution.bias),
    ):
        assert ours.numel() == theirs.numel()
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        assert ours.abs().max().item() == pytest.approx(1 / 3, rel=0.05)


def test_deployed_layer_is_the_same_function_with_fewer_parameters():
    torch.manual_seed(0)
    layer = SlideAttention(32, 2)
    x = torch.randn(1, 9, 5, 32)
    trained, parameters = layer(x), sum(p.numel() for p in layer.parameters())
    layer.switch_to_deploy()
    layer.switch_to_deploy()
    torch.testing.assert_close(layer(x), trained)
    assert sum(p.numel() for p in layer.parameters()) == parameters - 16 * 81 - 16 * 9 - 2 * 9
    assert not any("deformed" in name or name == "shift" for name in layer.state_dict())


def test_dropouts_work_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 16)
    for options in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        layer = SlideAttention(16, 2, **options)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
