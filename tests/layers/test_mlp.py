import random

import pytest
import torch

from slide_mm.layers import Mlp, mlp


@pytest.mark.parametrize("seed", range(5))
def test_chunks_of_tokens_change_nothing(seed, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, hidden = rng.randint(1, 20), rng.randint(1, 80)
    module = Mlp(channels, hidden).double()
    x = torch.randn(rng.randint(0, 3), *rng.choices(range(1, 30), k=2), channels).double()
    lengths = []
    whole = module.fc2.forward
    monkeypatch.setattr(module.fc2, "forward", lambda x: lengths.append(len(x)) or whole(x))
    results = []
    for num_tokens in (10**6, 50):
        monkeypatch.setattr(mlp, "_CPU_CHUNK", 8 * hidden * num_tokens)
        lengths.clear()
        inputs = (x.clone().requires_grad_(), *module.parameters())
        output = module(inputs[0])
        assert output.shape == x.shape
        assert sum(lengths) == x[..., 0].numel()
        assert max(lengths) <= num_tokens
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(*results)
