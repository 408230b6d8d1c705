import pytest
import torch

from opensora.evaluation.psnr import psnr_frames
from opensora.evaluation.ssim import C1, C2, over_clips, ssim_frames
from opensora.rng import generator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed, "pixels"))


def test_equal_frames_are_one_and_the_ceiling() -> None:
    x = noise(2, 3, 3, 12, 13)
    torch.testing.assert_close(ssim_frames(x, x), torch.ones(2, 3, dtype=torch.float64))
    assert psnr_frames(x, x).tolist() == [[100.0] * 3] * 2


def test_flat_frames_by_hand() -> None:
    """Without structure only the means speak: (2ab + C1) / (a^2 + b^2 + C1), and the error is (a - b)^2."""
    a, b = torch.full((1, 1, 3, 11, 11), 0.2), torch.full((1, 1, 3, 11, 11), 0.6)
    b[:, :, 1] = 0.2  # one color is equal
    expected = (2 * (2 * 0.2 * 0.6 + C1) / (0.2**2 + 0.6**2 + C1) + 1) / 3
    assert ssim_frames(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert psnr_frames(a, b).item() == pytest.approx(10 * torch.log10(torch.tensor(3 / 0.32)).item(), rel=1e-5)


def test_opposite_structure_is_negative() -> None:
    """Around one mean, frame against its mirror image in brightness: the covariance is minus the variance."""
    x = noise(1, 1, 1, 11, 11)
    offsets = torch.arange(11).double() - 5
    taps = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weight = torch.outer(taps, taps) / torch.outer(taps, taps).sum()
    mean = (x[0, 0, 0].double() * weight).sum()
    variance = (x[0, 0, 0].double().square() * weight).sum() - mean**2
    ssim = ssim_frames(x, (2 * mean - x.double()))
    assert ssim.item() == pytest.approx(((C2 - 2 * variance) / (C2 + 2 * variance)).item(), rel=1e-6)
    assert ssim.item() < -0.5


def test_each_frame_is_its_own() -> None:
    a, b = noise(2, 2, 3, 16, 16), noise(2, 2, 3, 16, 16, seed=1)
    b[1, 0] = a[1, 0]
    assert ssim_frames(a, b)[1, 0] == pytest.approx(1)
    torch.testing.assert_close(ssim_frames(a, b)[0], ssim_frames(a[:1], b[:1])[0])
    result = over_clips(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert (result.mean_T.tolist(), result.std_T.tolist()) == ([2.0, 5.0], [1.0, 0.0])


def test_wrong_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match="differ"):
        psnr_frames(noise(1, 2, 3, 12, 12), noise(1, 2, 3, 12, 13))
    with pytest.raises(ValueError, match=r"\(10, 12\).*11"):
        ssim_frames(noise(1, 1, 3, 10, 12), noise(1, 1, 3, 10, 12))
