"""Whole backbones on GPUs: on fake tensors everywhere, and for real where there is one."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from slide_mm.layers import ShiftedWindowAttention, SpatialReductionAttention
from slide_mm.models import FAMILIES
from tests.models.archs import FAMILY, build
from tests.needs import needs_pytorch


def convert(model, function):
    """Put something else in the place of each parameter and buffer."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = nn.Parameter(function(tensor.detach()))
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = function(tensor)
    return model


def differentiate(model, image):
    """Gradients of all parameters."""
    features = model(image)
    return torch.autograd.grad([x.float().mean() for x in features], list(model.parameters()))


@needs_pytorch("2.5", "a fake GPU where there is none")
@FAMILY
def test_nothing_is_made_on_another_device_or_of_another_type(family):
    """On a fake GPU, which wants all tensors of an operation there, in float16."""

    def pretend(tensor):
        tensor = tensor.half() if tensor.is_floating_point() else tensor
        return FakeTensor(mode, tensor.to("meta"), torch.device("cuda:0"))

    mode = FakeTensorMode(allow_fallback_kernels=False)
    model = convert(build(family), pretend)
    # cuDNN's operations have no fakes.
    with mode, torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        features = model(torch.empty(2, 3, 75, 101, dtype=torch.float16, device="cuda:0"))
    assert {(x.device, x.dtype) for x in features} == {(torch.device("cuda:0"), torch.float16)}


@FAMILY
def test_backward_makes_nothing_on_another_device(family):
    """PyTorch differentiates no fakes of a GPU where there is none."""
    gradients = differentiate(build(family).to("meta"), torch.empty(2, 3, 75, 101, device="meta"))
    assert all(x.is_meta for x in gradients)


def build_for_gpu(family):
    """Real widths, which the fused kernels know, and few blocks."""
    arch = next(iter(family.backbone.arch_zoo.values()))
    return build(family, arch={**arch, "depths": (2, 1, 2, 1)}, drop_path_rate=0.0)


@pytest.fixture
def without_tf32():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.mark.gpu
@FAMILY
def test_features_and_gradients_are_those_of_the_cpu(family, without_tf32):
    model, image = build_for_gpu(family), torch.randn(2, 3, 75, 101)
    expected = model(image), differentiate(model, image)
    model, image = model.cuda(), image.cuda()
    for actual, wanted in zip((model(image), differentiate(model, image)), expected, strict=True):
        for x, y in zip(actual, wanted, strict=True):
            assert (x.cpu() - y).norm() < 1e-3 * y.norm() + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@FAMILY
def test_trains_in_mixed_precision(family, dtype):
    model, image = build_for_gpu(family).cuda(), torch.randn(2, 3, 75, 101, device="cuda")
    targets = [torch.randn_like(x) for x in model(image)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses = []
    for _ in range(8):
        with torch.autocast("cuda", dtype):
            features = model(image)
            loss = sum(F.mse_loss(x.float(), y) for x, y in zip(features, targets, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(x.isfinite().all() for x in model.parameters())


@pytest.mark.gpu
@FAMILY
def test_nobody_waits_for_the_gpu(family):
    model, image = build_for_gpu(family).cuda(), torch.randn(2, 3, 75, 101, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        differentiate(model, image)
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            differentiate(model, image)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("family", [FAMILIES["slide-swin"]], ids=["slide-swin"])
def test_captured_in_a_cuda_graph(family):
    model, image = build_for_gpu(family).cuda(), torch.randn(2, 3, 75, 101, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = differentiate(model, image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = differentiate(model, image)
    graph.replay()
    for actual, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.gpu
@needs_pytorch("2.3", "sdpa_kernel")
@pytest.mark.parametrize(
    ("layer", "backend"),
    [
        (ShiftedWindowAttention(96, 3), "EFFICIENT_ATTENTION"),
        (ShiftedWindowAttention(96, 3, shifted=True), "EFFICIENT_ATTENTION"),
        (SpatialReductionAttention(128, 2, sr_ratio=4), "FLASH_ATTENTION"),
        (SpatialReductionAttention(128, 2), "FLASH_ATTENTION"),
    ],
    ids=["windows", "shifted windows", "reduced map", "whole map"],
)
def test_other_attention_reaches_a_fast_kernel(layer, backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    layer, x = layer.cuda(), torch.randn(2, 19, 26, layer.proj.in_features, device="cuda")
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(getattr(SDPBackend, backend)):
        output = layer(x)
        output.float().mean().backward()
