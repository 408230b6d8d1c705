"""VideoAutoencoder: the parts that all registered autoencoders share.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones.
"""

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from opensora.errors import WeightsError
from opensora.interfaces import Autoencoder
from opensora.models.vae.gaussian import Gaussian, LatentScale


def _note_loaded(module: nn.Module, keys: object) -> None:
    """A hook: `load_state_dict` of an autoencoder, or of one that holds it, has filled it."""
    module.loaded = True  # type: ignore[assignment]


class VideoAutoencoder(Autoencoder):
    """Subclasses own `latents` and define `posterior`.

    One that is built with `from_pretrained` raises WeightsError when it codes before its weights are loaded.
    """

    latents: LatentScale
    from_pretrained: str | None = None
    loaded = False  # its weights were read, by `load` or `load_state_dict`

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_note_loaded)

    def require_loaded(self) -> None:
        """Raise WeightsError if `from_pretrained` names weights that are not loaded yet; on meta there are none."""
        if self.from_pretrained is not None and not self.loaded and not next(self.parameters()).is_meta:
            raise WeightsError(
                f"{type(self).__name__}: the weights of {self.from_pretrained} are not loaded; call load() before coding clips"
            )

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        raise NotImplementedError

    def normalize(self, z: Tensor) -> Tensor:
        """Posterior latents to the scale that diffusion works at."""
        return self.latents.normalize(z)

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalized latents, float32; rngs: one CPU generator per clip to sample the posterior, None = its mode."""
        return self.normalize(self.posterior(x_BCTHW, rngs).draw(rngs))
