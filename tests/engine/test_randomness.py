import random

import pytest

from tests.engine.tiny_training import assert_same_state, draw_config, draw_workers, run


@pytest.mark.parametrize("seed", range(8))
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
