import pytest
import torch
from torch import Tensor

from opensora.evaluation.retrieval import FRAMES, SIDE, pixel_distances, reduce_clip, retrieval_accuracy
from opensora.rng import generator


def moving(dx: int, start: int = 4, frames: int = FRAMES, size: int = SIDE) -> Tensor:
    """A white square on black that moves `dx` columns a frame."""
    clip = torch.full((3, frames, size, size), -1.0)
    for time in range(frames):
        clip[:, time, 8:16, start + dx * time : start + dx * time + 8] = 1
    return clip


def test_the_nearest_reference_gives_the_label() -> None:
    references = [moving(0), moving(1), moving(2)]
    noise = torch.randn(3, FRAMES, SIDE, SIDE, generator=generator(0, "noise")) * 0.3
    result = retrieval_accuracy(
        [moving(2) + noise, moving(0) + noise, moving(1) + noise, moving(1)],
        ["fast", "still", "slow", "fast"],
        references,
        ["still", "slow", "fast"],
    )
    assert result.nearest == [2, 0, 1, 1]
    assert result.hits == [True, True, True, False]
    assert result.accuracy == 0.75
    assert result.distances_GR.shape == (4, 3)
    assert result.distances_GR[3, 1] == 0


def test_distance_is_the_root_mean_square_difference() -> None:
    black, white, grey = (torch.full((3, 5, 20, 24), value) for value in (-1.0, 1.0, 0.0))
    distances = pixel_distances([black, grey], [black, white], max_shift=0)
    torch.testing.assert_close(distances, torch.tensor([[0.0, 2.0], [1.0, 1.0]]))


def test_a_shift_in_time_is_forgiven_only_where_allowed() -> None:
    late = moving(2, start=6)  # one frame ahead of moving(2, start=4)
    assert pixel_distances([late], [moving(2)], max_shift=0).item() > 0.1
    assert pixel_distances([late], [moving(2)], max_shift=1).item() == 0
    assert pixel_distances([moving(2)], [late], max_shift=1).item() == 0
    assert pixel_distances([moving(2, start=8)], [moving(2)], max_shift=1).item() > 0.1


def test_clips_of_other_sizes_and_lengths_are_comparable() -> None:
    large = moving(2).repeat_interleave(2, dim=1).repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert reduce_clip(large).shape == (3, FRAMES, SIDE, SIDE)
    assert reduce_clip(torch.zeros(3, 1, 7, 9)).shape == (3, FRAMES, SIDE, SIDE)
    distances = pixel_distances([large], [moving(0), moving(2)])
    assert distances.argmin().item() == 1


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="both are needed"):
        retrieval_accuracy([], [], [moving(0)], ["a"])
    with pytest.raises(ValueError, match="label"):
        retrieval_accuracy([moving(0)], [], [moving(0)], ["a"])
    with pytest.raises(ValueError, match="max_shift 8"):
        pixel_distances([moving(0)], [moving(0)], max_shift=8)
