"""What the tests of all backends share."""

import pytest
import torch

from slide_mm.ops.backends import TABLE, why_not

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def able(dtype, device="cpu", kernel_size=3):
    """The backends that can take such tensors here."""
    tensors = [torch.empty(0, dtype=dtype, device=device)]
    return [name for name in TABLE if why_not(name, tensors, kernel_size) is None]


OPERATORS = [name for name in able(torch.float32) if TABLE[name].backward]
each_backend = pytest.mark.parametrize("backend", able(torch.float32))
each_operator = pytest.mark.parametrize("backend", OPERATORS)


def make_inputs(
    batch=1, height=5, width=6, num_heads=2, head_dim=8, kernel_size=3, dtype=torch.float32
):
    """qkv (B, H, W, 3, num_heads, head_dim), kernel, bias and position bias, with gradients."""
    torch.manual_seed(0)
    taps = kernel_size**2
    kernel = torch.eye(taps).view(taps, kernel_size, kernel_size)
    kernel = kernel + 0.3 * torch.randn(head_dim, taps, kernel_size, kernel_size)
    inputs = (
        torch.randn(batch, height, width, 3, num_heads, head_dim),
        kernel,
        torch.randn(head_dim, taps),
        torch.randn(num_heads, taps),
    )
    return [x.to(dtype).requires_grad_() for x in inputs]


def forward_and_gradients(function, inputs, **options):
    """The output, and the gradients of all inputs that are not None."""
    output = function(*inputs, **options)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device)
    given = [x for x in inputs if x is not None]
    return output, *torch.autograd.grad(output, given, weight.view_as(output).to(output))


def relative_error(actual, expected):
    """Norm of the difference over the norm of what is expected."""
    difference = torch.linalg.vector_norm(actual.double().cpu() - expected)
    return (difference / torch.linalg.vector_norm(expected).clamp(min=1e-30)).item()
