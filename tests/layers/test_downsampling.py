import pytest
import torch

from slide_mm.layers import PatchEmbed, PatchMerging


def test_patch_embedding_covers_the_border():
    """The last, partial patch sees its pixels and zeros beside them."""
    torch.manual_seed(0)
    layer = PatchEmbed(3, 8, kernel_size=4, stride=4)
    image = torch.randn(1, 6, 9, 3)
    padded = torch.zeros(1, 8, 12, 3)
    padded[:, :6, :9] = image
    torch.testing.assert_close(layer(image), layer(padded))
    assert layer(image).shape == (1, 2, 3, 8)


def test_overlapping_patch_embedding_rounds_up():
    layer = PatchEmbed(3, 8, kernel_size=7, stride=4)
    for height in range(1, 10):
        assert layer(torch.zeros(1, height, 4, 3)).shape == (1, -(-height // 4), 1, 8)


def test_less_padding_sees_the_image_filled_up():
    """As CSWin's first convolution: 2 zeros on each side, and a multiple of the stride."""
    torch.manual_seed(0)
    layer = PatchEmbed(3, 8, kernel_size=7, stride=4, padding=2, bias=False)
    for height in range(1, 10):
        image = torch.randn(1, 3, height, 6)
        filled = torch.zeros(1, 3, -(-height // 4) * 4, 8)
        filled[:, :, :height, :6] = image
        expected = torch.conv2d(filled, layer.proj.weight, stride=4, padding=2)
        assert expected.shape[2:] == (-(-height // 4), 2)
        expected = layer.norm(expected.permute(0, 2, 3, 1))
        torch.testing.assert_close(layer(image.permute(0, 2, 3, 1)), expected)
    for padding in (1, 4):
        with pytest.raises(
            ValueError, match=f"padding is {padding}: give a whole number from 2 to"
        ):
            PatchEmbed(3, 8, kernel_size=7, stride=4, padding=padding)


def test_patch_merging_order_is_that_of_the_authors():
    layer = PatchMerging(1, 2)
    layer.norm = torch.nn.Identity()
    layer.reduction = torch.nn.Identity()
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 2, 3, 1)
    assert layer(x).tolist() == [[[[1.0, 4.0, 2.0, 5.0], [3.0, 6.0, 0.0, 0.0]]]]
