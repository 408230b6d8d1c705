import pytest
import torch

from opensora.evaluation.psnr import psnr


def test_known_values_per_clip() -> None:
    clean = torch.zeros(4, 3, 2, 4, 4)
    noisy = torch.stack([clean[0], clean[1] + 0.2, clean[2] + 0.02, clean[3] + 1])
    # peak 2: 10 log10(4 / 0.04) = 20 dB, a tenth of the error is 20 dB more, an error of 1 is 6.02 dB
    torch.testing.assert_close(psnr(clean, noisy), torch.tensor([100.0, 20.0, 40.0, 6.0206]), atol=1e-4, rtol=0)


def test_outside_the_range_is_clipped_and_bf16_is_fine() -> None:
    white = torch.ones(1, 3, 1, 2, 2)
    assert psnr(white, white * 7).item() == 100
    assert psnr(white.bfloat16(), (white * 0.8).bfloat16()).item() == pytest.approx(20, abs=0.1)
    assert psnr(white, -white).item() == 0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        psnr(torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 1, 2, 1))
