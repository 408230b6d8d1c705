import pytest
import torch
from torch import Generator
from torch.distributions import Normal, kl_divergence

from opensora.models.shape_checks import ShapeError
from opensora.models.vae.gaussian import Gaussian, LatentScale


def example() -> Gaussian:
    torch.manual_seed(0)
    return Gaussian.from_moments(torch.randn(2, 6, 2, 3, 4))


def test_kl_is_the_sum_over_a_clip() -> None:
    g = example()
    exact = kl_divergence(Normal(g.mean, (0.5 * g.logvar).exp()), Normal(0.0, 1.0)).sum((1, 2, 3, 4))
    torch.testing.assert_close(g.kl(), exact)


def test_moments_are_clamped_and_float32() -> None:
    moments = torch.cat([torch.zeros(1, 1, 1, 1, 2), torch.tensor([-99.0, 99.0]).view(1, 1, 1, 1, 2)], dim=1)
    g = Gaussian.from_moments(moments.to(torch.bfloat16))
    assert g.logvar.flatten().tolist() == [-30.0, 20.0]
    assert g.mean.dtype == torch.float32


def test_draws_are_one_generator_per_clip() -> None:
    g = example()
    samples = g.draw([Generator().manual_seed(1), Generator().manual_seed(2)])
    second = torch.randn(3, 2, 3, 4, generator=Generator().manual_seed(2))
    torch.testing.assert_close(samples[1], g.mean[1] + (0.5 * g.logvar[1]).exp() * second)
    assert torch.equal(g.draw(None), g.mode())
    with pytest.raises(ShapeError, match=r"1 generator.*2 clips"):
        g.draw([Generator()])


@pytest.mark.parametrize(
    "scale",
    [LatentScale(0.18215), LatentScale(2.0, [1.0, 2.0, 3.0]), LatentScale(2.0, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])],
)
def test_scaling_round_trip(scale: LatentScale) -> None:
    z = example().mean
    torch.testing.assert_close(scale.restore(scale.normalize(z)), z)


def test_a_scale_per_channel_takes_the_place_of_the_factor() -> None:
    z = torch.ones(1, 2, 1, 1, 1)
    assert LatentScale(9.0, [0.0, 0.5], [2.0, 4.0]).normalize(z).flatten().tolist() == [2.0, 2.0]
    assert LatentScale(3.0).normalize(z).flatten().tolist() == [3.0, 3.0]


def test_one_number_per_channel() -> None:
    with pytest.raises(ShapeError, match=r"latent_scale.*3"):
        LatentScale(1.0, [0.0, 0.0], [1.0, 1.0, 1.0]).normalize(torch.ones(1, 2, 1, 1, 1))
