import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slide_mm.ops import slide_attention, slide_attention_qkvpacked
from tests.needs import needs_pytorch
from tests.ops.inputs import OPERATORS, each_operator, forward_and_gradients, make_inputs


@needs_pytorch("2.5", "opcheck")
@pytest.mark.parametrize("packed", [True, False])
@each_operator
def test_registered_as_pytorch_expects(backend, packed):
    qkv, kernel, bias, position_bias = make_inputs()
    inputs = [qkv] if packed else [x.detach().requires_grad_() for x in qkv.unbind(3)]
    weights = kernel.flatten(2), bias, position_bias
    torch.library.opcheck(
        torch.ops.slide_mm.slide_attention, (inputs, *weights, 0.3, backend, True)
    )


@each_operator
def test_compiles_without_graph_breaks(backend):
    inputs = make_inputs()
    compiled = torch.compile(slide_attention_qkvpacked, fullgraph=True, backend="aot_eager")
    expected = forward_and_gradients(slide_attention_qkvpacked, inputs, backend=backend)
    assert all(map(torch.equal, forward_and_gradients(compiled, inputs, backend=backend), expected))


def test_auto_takes_the_operator_when_compiled():
    graphs = []
    attend = torch.compile(
        slide_attention_qkvpacked,
        fullgraph=True,
        backend=lambda graph, _: graphs.append(graph) or graph,
    )
    attend(*make_inputs())
    assert "torch.ops.slide_mm.slide_attention" in graphs[0].code


def test_auto_takes_the_first_operator_that_can():
    inputs = make_inputs()
    auto, first = (slide_attention_qkvpacked(*inputs, backend=x) for x in ("auto", OPERATORS[0]))
    assert "Attention" in type(auto.grad_fn).__name__
    assert torch.equal(auto, first)


@each_operator
def test_same_output_without_gradients(backend):
    inputs = make_inputs()
    with torch.no_grad():
        output = slide_attention_qkvpacked(*inputs, backend=backend)
    assert torch.equal(output, slide_attention_qkvpacked(*inputs, backend=backend))


@each_operator
def test_keeps_the_inputs_and_the_attention_weights_alone(backend):
    inputs = make_inputs(height=24, width=20)
    kept = {}

    def remember(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        slide_attention_qkvpacked(*inputs, backend=backend)
    attention = 24 * 20 * 2 * 9
    assert sum(kept.values()) <= sum(x.numel() for x in inputs) + attention


@each_operator
def test_refuses_double_backward(backend):
    inputs = make_inputs()
    output = slide_attention_qkvpacked(*inputs, backend=backend)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative here: use backend='tap'"):
        gradient.sum().backward()


@each_operator
def test_refuses_vmap(backend):
    qkv, *weights = (x.detach() for x in make_inputs(batch=3))
    mapped = torch.vmap(lambda x: slide_attention_qkvpacked(x, *weights, backend=backend))
    with pytest.raises(RuntimeError, match="can't be vmapped here: use backend='tap'"):
        mapped(qkv[:, None])


@pytest.mark.parametrize("packed", [True, False])
@each_operator
def test_pytorch_counts_its_operations(backend, packed):
    qkv, *weights = make_inputs()
    with FlopCounterMode(display=False) as counter:
        if packed:
            output = slide_attention_qkvpacked(qkv, *weights, backend=backend)
        else:
            output = slide_attention(*qkv.unbind(3), *weights, backend=backend)
    # For each channel, of key and of value: 9 products with neighbours, mixed to 9 by 81 more.
    forward = 2 * 2 * qkv[:, :, :, 0].numel() * (9 + 81)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2.5 * forward
