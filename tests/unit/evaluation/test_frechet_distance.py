import pytest
import torch

from opensora.evaluation.frechet_distance import clip_for_features, frechet_distance
from opensora.rng import generator


def test_diagonal_gaussians_by_hand() -> None:
    """Sets with mean and deviation known exactly: |m|^2 + sum (s_a - s_b)^2."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * (3 / 4) ** 0.5  # covariance 1
    a, b = corners * torch.tensor([1.0, 2.0]), corners * torch.tensor([3.0, 2.5]) + torch.tensor([1.0, 2.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2 + (2.5 - 2) ** 2, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_turned_features_are_as_far_apart() -> None:
    """The distance knows no axes; correlated features are what the matrix root is for."""
    a, b = (torch.randn(50, 3, generator=generator(seed)).double() for seed in (1, 2))
    b = b @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.2]]).double()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(3)).double())
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_few_or_unequal_features_are_a_sentence() -> None:
    for a, b in ((torch.zeros(1, 3), torch.zeros(5, 3)), (torch.zeros(5, 2), torch.zeros(5, 3))):
        with pytest.raises(ValueError, match="two samples"):
            frechet_distance(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_a_sentence(value: float) -> None:
    good, bad = torch.randn(4, 2, generator=generator(1)), torch.randn(4, 2, generator=generator(2))
    bad[1, 1] = value
    with pytest.raises(ValueError, match="1 of 4 samples of the second set hold NaN or infinity"):
        frechet_distance(good, bad)


def test_clips_are_cut_to_a_square_of_the_network() -> None:
    video = torch.arange(12.0).expand(1, 3, 2, 6, 12) / 16
    cut = clip_for_features(video, size=6)
    assert cut.shape == (1, 3, 2, 6, 6)
    expected = ((video * 255).floor() / 255 * 2 - 1)[..., 3:9]
    torch.testing.assert_close(cut, expected)
    assert clip_for_features(video.transpose(3, 4), size=6).shape == (1, 3, 2, 6, 6)
