import torch
from torch.distributions import Normal, kl_divergence

from opensora.rng import generator
from opensora.schedulers.likelihood import binned_normal_log_likelihood, normal_kl


def test_kl_of_normals() -> None:
    mean1, logvar1, mean2, logvar2 = torch.randn(4, 6, generator=generator(0, "kl")).double()
    expected = kl_divergence(Normal(mean1, (logvar1 / 2).exp()), Normal(mean2, (logvar2 / 2).exp()))
    torch.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), expected)


def test_bins_cover_everything_once() -> None:
    centres = torch.linspace(-1, 1, 256).double()
    for mean, log_std in [(0.0, -1.0), (0.9, -3.0), (-1.5, 0.0)]:
        log_likelihood = binned_normal_log_likelihood(centres, torch.tensor(mean), torch.tensor(log_std))
        torch.testing.assert_close(log_likelihood.exp().sum(), torch.tensor(1.0).double(), rtol=1e-5, atol=0)


def test_bin_probability_is_density_times_width() -> None:
    x = torch.tensor([-0.5, 0.0, 0.3])
    got = binned_normal_log_likelihood(x, torch.zeros(3), torch.full((3,), -1.0))
    expected = Normal(0.0, torch.tensor(-1.0).exp()).log_prob(x) + torch.tensor(2 / 255).log()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_impossible_is_finite() -> None:
    assert binned_normal_log_likelihood(torch.tensor([0.0]), torch.tensor([50.0]), torch.tensor([-5.0])).isfinite()
