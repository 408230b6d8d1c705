"""The diagonal Gaussian that an encoder predicts, and the scaling of latents for diffusion.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns.
Source: Kingma & Welling 2013, arXiv:1312.6114, appendix B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from opensora.models.layers.patch import at_least_float32
from opensora.models.shape_checks import ShapeError


@dataclass(frozen=True)
class Gaussian:
    """Mean and log-variance [B, C, T, H, W], float32; build it with `from_moments`."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Gaussian":
        """Mean and log-variance stacked on channels; the log-variance is clamped to [-30, 20]."""
        mean, logvar = at_least_float32(moments).chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + (0.5 * self.logvar).exp() * noise

    def draw(self, rngs: Sequence[Generator] | None) -> Tensor:
        """A sample from one CPU generator per clip: the same numbers on every device. None gives the mode."""
        if rngs is None:
            return self.mode()
        if len(rngs) != len(self.mean):
            raise ShapeError(f"autoencoder: {len(rngs)} generators for {len(self.mean)} clips; give one per clip")
        noise = torch.stack([torch.randn(self.mean.shape[1:], generator=rng) for rng in rngs])
        return self.sample(noise.to(self.mean.device))

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, [B]: a sum over all latents of a clip, in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


@dataclass(frozen=True)
class LatentScale:
    """The scale that diffusion works at: (z - shift) * scale. `scale`, one per channel, replaces `factor`."""

    factor: float
    shift: Sequence[float] | None = None
    scale: Sequence[float] | None = None

    def _columns(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        for name, values in (("latent_shift", self.shift), ("latent_scale", self.scale)):
            if values is not None and len(values) != z.shape[1]:
                raise ShapeError(f"autoencoder: {name} has {len(values)} numbers; one per latent channel, {z.shape[1]}")
        shift = 0.0 if self.shift is None else z.new_tensor(list(self.shift)).view(1, -1, 1, 1, 1)
        scale = self.factor if self.scale is None else z.new_tensor(list(self.scale)).view(1, -1, 1, 1, 1)
        return shift, scale

    def normalize(self, z: Tensor) -> Tensor:
        shift, scale = self._columns(z)
        return (z - shift) * scale

    def restore(self, z: Tensor) -> Tensor:
        shift, scale = self._columns(z)
        return z / scale + shift
