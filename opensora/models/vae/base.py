"""VideoAutoencoder: the parts that all registered autoencoders share.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones.
"""

from collections.abc import Sequence

from torch import Generator, Tensor

from opensora.interfaces import Autoencoder
from opensora.models.vae.gaussian import Gaussian, LatentScale


class VideoAutoencoder(Autoencoder):
    """Subclasses own `latents` and define `posterior`."""

    latents: LatentScale

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        raise NotImplementedError

    def normalize(self, z: Tensor) -> Tensor:
        """Posterior latents to the scale that diffusion works at."""
        return self.latents.normalize(z)

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalized latents, float32; rngs: one CPU generator per clip to sample the posterior, None = its mode."""
        return self.normalize(self.posterior(x_BCTHW, rngs).draw(rngs))
