import pytest

from slide_mm.analysis.local_attention.equivariance import check_equivariance, measure_changes


def fields_of(**reaches):
    return {name: [{"reach": reach} for reach in stages] for name, stages in reaches.items()}


def test_sliding_stages_move_with_the_image_and_windows_do_not(backbones, photograph):
    fields = fields_of(sliding=[10.0, 22.0, None, None], original=[None] * 4)
    numbers = check_equivariance(backbones, [photograph], fields).numbers
    sliding, original = numbers["sliding"], numbers["original"]
    assert [x["error"] < 1e-5 for x in sliding] == [True, True, False, False]
    assert [x["border_excluded"] for x in sliding] == [True, True, False, False]
    assert min(x["error"] for x in original) > 1e-4
    assert [x["stride"] for x in original] == [4, 8, 16, 32]
    assert original[0]["mixer"] == "ShiftedWindowAttention"


def test_border_counts_where_the_stage_sees_it(backbones, photograph):
    # The middle of crops of 160 pixels is 40 pixels from the border.
    fields = fields_of(sliding=[36.0, 36.0, 8.0, 9.0], original=[0.0] * 4)
    sliding = check_equivariance(backbones, [photograph], fields).numbers["sliding"]
    assert [x["border_excluded"] for x in sliding] == [True, False, True, False]


def test_error_is_that_of_the_map(backbones, photograph):
    for change, error in measure_changes(backbones["original"], photograph.tensor):
        assert change.square().mean().sqrt().item() == pytest.approx(error, rel=1e-4)
