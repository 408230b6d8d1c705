"""Keys of task autoencoder that do not make sense together."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from opensora.errors import ConfigError

if TYPE_CHECKING:
    from opensora.schema import TrainRun


def check_autoencoder_keys(run: "TrainRun", where: Callable[[str], str]) -> None:
    """Raise ConfigError, with the place of the key; imports no component. where: as in `TrainRun.check`."""
    _check_start(run, where)
    _check_reconstruct(run, where)
    if run.validation_perceptual is not None and run.validation_dataset is None:
        raise ConfigError(
            f"{where('validation_perceptual')}: key 'validation_perceptual': found without validation_dataset; set that as "
            "well, or remove the key"
        )
    if run.min_frames is not None and run.bucket_config is not None:
        raise ConfigError(
            f"{where('min_frames')}: keys 'min_frames', 'bucket_config': both say how long clips are; remove one of the two"
        )


def _check_start(run: "TrainRun", where: Callable[[str], str]) -> None:
    starts = {"tail_init": run.tail_init, "principal_start": run.principal_start or None, "load": run.load}
    starts["vae.from_pretrained"] = run.vae.get("from_pretrained")
    chosen = [name for name, value in starts.items() if value is not None]
    if not chosen or chosen[0] in ("load", "vae.from_pretrained"):
        return
    own = {
        "tail_init": "whose kernels hold those of an image autoencoder",
        "principal_start": "whose layouts have shuffles",
    }
    if run.vae.get("type") != "CausalVAEModel":
        raise ConfigError(
            f"{where(chosen[0])}: key '{chosen[0]}': found with vae.type {run.vae.get('type')!r}; allowed: "
            f"'CausalVAEModel', {own[chosen[0]]}; change vae.type or remove the key"
        )
    if len(chosen) > 1:
        raise ConfigError(
            f"{where(chosen[0])}: keys '{chosen[0]}', '{chosen[1]}': both name the weights to start from; remove one of the two"
        )


def _check_reconstruct(run: "TrainRun", where: Callable[[str], str]) -> None:
    of_pixels = [name for name in ("perceptual", "discriminator") if getattr(run, name) is not None]
    if run.reconstruct == "latents" and (run.task != "autoencoder" or of_pixels):
        other = f"'{of_pixels[0]}' judges pixels" if of_pixels else "task 'diffusion' reconstructs nothing"
        raise ConfigError(
            f"{where('reconstruct')}: key 'reconstruct': found 'latents', and {other}; allowed: 'pixels'; change one of them"
        )
    if run.identity_weight and run.reconstruct != "latents":
        raise ConfigError(
            f"{where('identity_weight')}: key 'identity_weight': found {run.identity_weight} with reconstruct='pixels'; "
            "allowed: with 'latents', which it compares; set that, or remove the key"
        )
    images = run.image_ratio or run.bucket_config or run.dataset.get("num_frames") == 1 or run.min_frames == 1
    if run.identity_weight and not images:
        raise ConfigError(
            f"{where('identity_weight')}: key 'identity_weight': found {run.identity_weight}, and no clip has one frame, for "
            "which it is; allowed: with image_ratio; set that, or remove the key"
        )
