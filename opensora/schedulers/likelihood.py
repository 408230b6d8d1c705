"""Gaussian terms of the variational bound, element by element, in nats.

Source: Ho et al. 2020, arXiv:2006.11239, eq. 5 and 13.
"""

import math

import torch
from torch import Tensor


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N1 || N2)."""
    return 0.5 * (
        -1.0 + logvar2 - logvar1 + torch.exp(logvar1 - logvar2) + (mean1 - mean2).square() * torch.exp(-logvar2)
    )


def binned_normal_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of the bin of width 2/255 around x; the bins beyond +-0.999 reach to infinity."""
    above, below = ((x - mean + edge) * torch.exp(-log_std) for edge in (1 / 255, -1 / 255))
    up_to_above, up_to_below = _normal_cdf(above), _normal_cdf(below)
    inside = _log(up_to_above - up_to_below)
    return torch.where(x < -0.999, _log(up_to_above), torch.where(x > 0.999, _log(1.0 - up_to_below), inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """Standard normal distribution function by the tanh approximation released models were trained with."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _log(probability: Tensor) -> Tensor:
    return torch.log(probability.clamp(min=1e-12))
