import math
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from slide_mm.analysis import count_complexity, count_flops
from slide_mm.analysis.complexity import build_to_count
from slide_mm.layers import ShiftedWindowAttention, SlideAttention, SpatialReductionAttention

CONFIGS = Path(__file__).parents[2] / "configs"
MASK2FORMER = "slide_swin/mask2former_slide-swin-t_8xb2-160k_ade20k-512x512.py"
PYRAMID = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_slide_attention_by_hand(kernel_size):
    height, width, channels, taps = 6, 10, 16, kernel_size**2
    with torch.device("meta"):
        layer = SlideAttention(channels, num_heads=2, kernel_size=kernel_size)
        x = torch.empty(1, height, width, channels)
    linear = 4 * channels**2
    # Keys and values each: a depth-wise convolution with K*K outputs a channel, and a product.
    shift, attend = 2 * taps * channels * taps, 2 * taps * channels
    assert count_flops(lambda: layer(x)) == height * width * (linear + shift + attend)


def test_spatial_reduction_attention_by_hand():
    channels, queries, keys = 16, 8 * 12, 4 * 6
    with torch.device("meta"):
        layer = SpatialReductionAttention(channels, num_heads=2, sr_ratio=2)
        x = torch.empty(1, 8, 12, channels)
    reduction = keys * (4 * channels**2 + 5 * channels)
    linear = 2 * queries * channels**2 + 2 * keys * channels**2
    assert count_flops(lambda: layer(x)) == reduction + linear + 2 * queries * keys * channels


def test_window_attention_by_hand():
    channels, tokens, padded, window = 16, 8 * 13, 10 * 15, 25
    with torch.device("meta"):
        layer = ShiftedWindowAttention(channels, num_heads=2, window_size=5, shifted=True)
        x = torch.empty(1, 8, 13, channels)
    linear = 3 * padded * channels**2 + tokens * channels**2
    assert count_flops(lambda: layer(x)) == linear + 2 * padded * window * channels


def test_deformable_attention_by_hand():
    """It cannot do without values, so models with it are built in memory."""
    from mmcv.ops import MultiScaleDeformableAttention

    channels, sizes, points = 16, torch.tensor([[4, 6], [2, 3]]), 3
    layer = MultiScaleDeformableAttention(
        channels, num_heads=2, num_levels=2, num_points=points, batch_first=True
    ).eval()
    tokens = 4 * 6 + 2 * 3
    x = torch.randn(1, tokens, channels)
    places = torch.rand(1, tokens, 2, 2)
    starts = torch.tensor([0, 24])
    samples = 2 * 2 * points  # Of each token: heads, levels, points.
    linear = tokens * (2 * channels**2 + channels * samples * (2 + 1))
    sampling = 4 * tokens * samples * channels // 2
    call = {"reference_points": places, "spatial_shapes": sizes, "level_start_index": starts}
    assert count_flops(lambda: layer(x, **call)) == linear + sampling
    cfg = Config.fromfile(CONFIGS / MASK2FORMER)
    assert not next(build_to_count(cfg).parameters()).is_meta


def count_sdpa(inputs, outputs):
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@pytest.mark.parametrize(
    "config",
    [
        "slide_pvtv2/slide-pvtv2-b0_fpn_8xb4-40k_ade20k-512x512.py",
        "slide_pvt/pvt-tiny_fpn_8xb4-40k_ade20k-512x512.py",
        "slide_swin/slide-swin-tiny-patch4-window7_upernet_8xb2-160k_ade20k-512x512.py",
        "slide_pvt/retinanet_slide-pvt-t_fpn_1x_coco.py",
    ],
)
def test_counts_are_those_of_mmengines_tracing(config):
    cfg = Config.fromfile(CONFIGS / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        traced = MODELS.build(cfg.model).eval()
    analysis = FlopAnalyzer(traced, torch.zeros(1, 3, 64, 96))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", count_sdpa)
    for name in ("aten::upsample_nearest2d", "aten::adaptive_avg_pool2d"):
        analysis.set_op_handle(name, lambda inputs, outputs: 0)
    flops, params = count_complexity(build_to_count(cfg), (64, 96))
    assert flops == analysis.total()
    assert params == sum(parameter.numel() for parameter in traced.parameters())


def count_rpn():
    return sum(height * width for height, width in PYRAMID) * 256 * (9 * 256 + 3 + 12)


def count_mask_head():
    convs, upsampling, classes = 4 * 9 * 256**2 * 14**2, 4 * 256**2 * 14**2, 256 * 80 * 28**2
    return convs + upsampling + classes


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (
            "slide_pvt/mask-rcnn_slide-pvt-t_fpn_1x_coco.py",
            1000 * (7 * 7 * 256 * 1024 + 1024**2 + 1024 * (81 + 4 * 80)) + 100 * count_mask_head(),
        ),
        (
            "slide_swin/cascade-mask-rcnn_slide-swin-t-p4-w7_fpn_4conv1fc-giou_ms-crop-3x_coco.py",
            # Convolutions with their batch norms, one hidden layer, classes and boxes.
            3
            * 1000
            * (4 * 7 * 7 * (9 * 256**2 + 2 * 256) + 7 * 7 * 256 * 1024 + 1024 * (81 + 4 * 80))
            + 3 * 100 * count_mask_head(),
        ),
    ],
    ids=["mask-rcnn", "cascade"],
)
def test_heads_of_detectors_by_hand(config, by_hand):
    cfg = Config.fromfile(CONFIGS / config)
    model = build_to_count(cfg).eval()
    image = torch.empty(1, 3, 64, 96, device="meta")
    features = count_flops(lambda: model.extract_feat(image))
    assert count_complexity(model, (64, 96)).flops - features == by_hand + count_rpn()
