import torch

from slide_mm.layers import SpatialReductionAttention


def test_every_token_attends_to_every_whole_patch():
    torch.manual_seed(0)
    layer = SpatialReductionAttention(16, 2, sr_ratio=2).double()
    x = torch.randn(2, 5, 4, 16, dtype=torch.float64)
    reduced = layer.norm(layer.sr(x[:, :4].permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
    query = layer.q(x).view(2, 20, 2, 8)
    key, value = layer.kv(reduced).view(2, 4, 2, 2, 8).unbind(2)
    attention = (torch.einsum("bnhd,bmhd->bhnm", query, key) * 8**-0.5).softmax(-1)
    out = torch.einsum("bhnm,bmhd->bnhd", attention, value).reshape(2, 5, 4, 16)
    torch.testing.assert_close(layer(x), layer.proj(out))


def test_maps_smaller_than_the_ratio_are_padded():
    layer = SpatialReductionAttention(16, 2, sr_ratio=8)
    assert layer(torch.randn(1, 1, 3, 16)).shape == (1, 1, 3, 16)
