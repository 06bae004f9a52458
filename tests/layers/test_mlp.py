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
    whole = module(x)
    lengths = []
    module.fc2.register_forward_hook(lambda *arguments: lengths.append(len(arguments[1][0])))
    monkeypatch.setattr(mlp, "_CPU_CHUNK", 8 * hidden * 50)
    with torch.inference_mode():
        parts = module(x)
    assert parts.shape == x.shape
    torch.testing.assert_close(parts, whole.detach())
    assert sum(lengths) == x[..., 0].numel()
    assert max(lengths) <= 50
