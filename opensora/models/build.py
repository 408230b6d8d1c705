"""Build the denoiser, the autoencoder and the text encoder of a config so that they fit each other."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder, Denoiser, Size, TextEncoder
from opensora.log import logger
from opensora.models.frame_counts import require_frame_counts
from opensora.models.weights import load_weights, require_kind
from opensora.registry import MODELS, TEXT_ENCODERS, VAES, build, class_of, constructor
from opensora.rng import key_seed


@dataclass(frozen=True)
class Components:
    """Modules that fit each other, on the CPU (or on meta) in float32."""

    model: Denoiser
    vae: Autoencoder
    text_encoder: TextEncoder
    model_config: dict[str, Any]  # rebuilds `model` without the other parts


def assemble(
    model: Mapping[str, Any],
    vae: Mapping[str, Any],
    text_encoder: Mapping[str, Any],
    *,
    num_frames: int,
    image_size: Sequence[int],
    seed: int = 0,
    weights: bool = True,
    text_dtype: torch.dtype | None = None,
    stored_vae: Autoencoder | None = None,
    stored_text: TextEncoder | None = None,
    lengths: Sequence[tuple[str, int]] | None = None,
) -> Components:
    """Build all three; arguments that one determines of another are passed on.

    num_frames, image_size: of the clips in pixels (height, width). weights=False: read no weights; build under
    `torch.device("meta")` to allocate nothing either. text_dtype: the text encoder is read in it; None: as its file has it.
    stored_vae, stored_text: stand-ins that read stored features; the component they replace is not built.
    lengths: (key, frames) of all clips of the run; None = the one of `num_frames`.
    Raises ConfigError when the config contradicts the components, or the autoencoder would drop frames of a clip;
    WeightsError when weights do not fit.
    """
    # seed 0: an untrained autoencoder, as in debug runs, is the same in training and sampling
    encoder = stored_vae or build_autoencoder(vae)
    require_frame_counts(encoder, [("key 'num_frames'", num_frames)] if lengths is None else lengths, "config")
    text: TextEncoder = stored_text or build(TEXT_ENCODERS, dict(text_encoder))
    config = fill_model_config(model, inferred_model_args(encoder, text, (num_frames, image_size[0], image_size[1])))
    if stored_vae is None:  # it knows the sizes of the clips that were encoded, and no other
        check_image_size("config: key 'dataset.image_size'", image_size, encoder, config)
    denoiser = build_denoiser(config, seed=seed, pretrained=model.get("from_pretrained") if weights else None)
    if weights:
        encoder = encoder if stored_vae is not None else load_autoencoder(encoder, vae)
        text = text.to("cpu", text_dtype).load()
    return Components(denoiser, encoder, text, config)


def inferred_model_args(vae: Autoencoder, text_encoder: TextEncoder, size: Size) -> dict[str, Any]:
    """Constructor arguments of a denoiser that the other components determine, for clips of `size` in pixels."""
    return {
        "input_size": list(vae.latent_size(size)),
        "in_channels": vae.latent_channels,
        **text_encoder.denoiser_args,
    }


def fill_model_config(model: Mapping[str, Any], inferred: Mapping[str, Any]) -> dict[str, Any]:
    """The model's config plus those inferred arguments that its constructor takes.

    Raises ConfigError for a contradiction, and for class labels where the model takes captions.
    """
    parameters = inspect.signature(constructor(MODELS, model["type"])).parameters
    condition = inferred.get("condition", "text")
    if condition != "text" and "condition" not in parameters:
        raise ConfigError(
            f"config: key 'text_encoder': it gives classes ({condition}), and {model['type']} takes captions; allowed: an "
            "encoder of captions, such as t5; change it, or take a model by class, such as DiT"
        )
    config = {key: value for key, value in model.items() if key != "from_pretrained"}
    for key, value in inferred.items():
        if key not in parameters:
            continue
        stated = config.get(key, value)
        if (list(stated) if isinstance(stated, list | tuple) else stated) != value:
            raise ConfigError(
                f"config: key 'model.{key}': found {stated}; allowed: {value}, which the dataset, vae and text_encoder "
                f"give; remove the key"
            )
        config[key] = value
    return config


def check_image_size(where: str, image_size: Sequence[int], vae: Autoencoder, model: Mapping[str, Any]) -> None:
    """Raise ConfigError, in pixels, for (height, width) whose latents the patches of the model do not divide.

    model: its complete config.
    """
    if class_of(MODELS, model["type"]).pads:
        return
    patches = _patches(model)
    latents = vae.latent_size((1, image_size[0], image_size[1]))[1:]
    if any(n < 1 or n % p for n, p in zip(latents, patches, strict=True)):
        scales, steps = vae.compression[1:], pixel_steps(vae, model)
        nearest = tuple(max(1, round(side / step)) * step for side, step in zip(image_size, steps, strict=True))
        multiples = " and ".join(
            f"multiples of {step} (autoencoder {scale} x patch {p})"
            for step, scale, p in dict.fromkeys(zip(steps, scales, patches, strict=True))
        )
        raise ConfigError(f"{where}: found {tuple(image_size)}; allowed: {multiples}; nearest: {nearest}; change it")


def pixel_steps(vae: Autoencoder, model: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of pixels of which the sizes of a clip are multiples: the autoencoder's, times the patches' if the
    model does not pad them. model: its config.
    """
    rows, columns = vae.compression[1:]
    if class_of(MODELS, model["type"]).pads:
        return rows, columns
    patches = _patches(model)
    return rows * patches[0], columns * patches[1]


def _patches(model: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of latents in a patch of the model with this config."""
    parameters = inspect.signature(constructor(MODELS, model["type"])).parameters
    patch = model.get("patch_size", parameters["patch_size"].default)
    rows, columns = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
    return rows, columns


def build_autoencoder(config: Mapping[str, Any], *, seed: int = 0) -> Autoencoder:
    """Build an autoencoder without its weights; initial weights depend on `seed` alone."""
    with _seeded_init(seed):
        return build(VAES, dict(config))


def build_denoiser(config: Mapping[str, Any], *, seed: int = 0, pretrained: str | None = None) -> Denoiser:
    """Build a denoiser from its complete config; initial weights depend on `seed` alone."""
    with _seeded_init(seed):
        model: Denoiser = build(MODELS, dict(config))
    if pretrained is not None:
        require_kind(pretrained, MODELS, "key 'model.from_pretrained'")
        load_weights(model, pretrained)
    return model


def load_autoencoder(vae: Autoencoder, config: Mapping[str, Any]) -> Autoencoder:
    """Read its weights. Parts without a `from_pretrained` keep their initial weights, which only suits debugging."""
    if config.get("from_pretrained") is None:
        logger().warning("vae: no from_pretrained, so latents come from untrained weights; fine for a debug run only")
    return vae.load()  # without a from_pretrained of its own, parts of it may have one


@contextmanager
def _seeded_init(seed: int) -> Iterator[None]:
    """Seed torch's global generator, which initialization draws from, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, "initial weights"))
        yield


def num_tokens(model: Denoiser, size: Sequence[int] | None = None) -> int:
    """Latent tokens per sample of `size` (frames, rows, columns; None = input_size): patches of the padded grid."""
    return prod(-(-length // patch) for length, patch in zip(size or model.input_size, model.patch_size, strict=True))
