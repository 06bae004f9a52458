import random

import pytest
import torch

from tests.engine.kills import run_two
from tests.engine.tiny_training import assert_same_state, draw_config, draw_workers, run

# Both loops, accumulated gradients, EMA, grouped batches and a schedule by validations.
SOON = (1, 2, 3, 6)
SEEDS = [pytest.param(x, marks=() if x in SOON else pytest.mark.slow) for x in range(16)]


@pytest.mark.parametrize("seed", SEEDS)
def test_resumed_equals_never_ended(seed, tmp_path, quick_trainings):
    """From any checkpoint on, also one within an epoch, and with other loader processes."""
    rng = random.Random(seed)
    settings = draw_config(rng)
    whole = run(settings, tmp_path / "whole")
    saved = {str(path) for path in (tmp_path / "whole").glob("[ei]*_*.pth")}
    start = rng.choice(sorted(saved - {(tmp_path / "whole/last_checkpoint").read_text()}))
    settings["train_dataloader"] |= draw_workers(rng)
    resumed = run(settings, tmp_path / "resumed", start)
    assert_same_state(resumed, whole)


def test_two_processes(tmp_path, quick_trainings):
    settings = draw_config(random.Random(1))
    settings["optim_wrapper"]["accumulative_counts"] = 1
    settings["randomness"] = dict(seed=None, diff_rank_seed=True)
    settings["launcher"] = "pytorch"

    def last(folder):
        return torch.load((folder / "last_checkpoint").read_text(), weights_only=False)

    run_two(run, settings, tmp_path / "whole")
    saved = {str(path) for path in (tmp_path / "whole").glob("[ei]*_*.pth")}
    first = sorted(saved - {(tmp_path / "whole/last_checkpoint").read_text()})[0]
    run_two(run, settings, tmp_path / "resumed", first)
    assert_same_state(last(tmp_path / "resumed"), last(tmp_path / "whole"))
