"""From the config's parts to built modules that fit each other: denoiser, autoencoder, text encoder."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from opensora.errors import ConfigError
from opensora.log import logger
from opensora.models.weights import load_weights
from opensora.registry import MODELS, TEXT_ENCODERS, VAES, build, constructor
from opensora.rng import key_seed

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}  # the config's words


@dataclass(frozen=True)
class Components:
    """Modules that fit each other, on the CPU (or on meta) in float32."""

    model: Any  # a registered denoiser
    vae: Any
    text_encoder: Any
    model_config: dict[str, Any]  # complete: what rebuilds `model` without the other parts


def assemble(
    model: Mapping[str, Any],
    vae: Mapping[str, Any],
    text_encoder: Mapping[str, Any],
    *,
    num_frames: int,
    image_size: Sequence[int],
    seed: int = 0,
    weights: bool = True,
    stored_vae: Any = None,
    stored_text: Any = None,
) -> Components:
    """Build all three; what one needs to know of another is passed on.

    num_frames, image_size: of the clips in pixels (height, width). weights=False: nothing is read, build under
    `torch.device("meta")` to allocate nothing either.
    stored_vae, stored_text: stand-ins that read stored features; the part whose place they take is not built.
    Raises ConfigError when the config contradicts the parts, WeightsError when weights do not fit.
    """
    # seed 0: an untrained autoencoder, as in debug runs, is the same in training and sampling
    encoder = stored_vae or build_autoencoder(vae)
    text = stored_text or build(TEXT_ENCODERS, dict(text_encoder))
    given = inferred_model_args(encoder, text, (num_frames, *image_size))
    config = complete(model, given)
    denoiser = build_denoiser(config, seed=seed, pretrained=model.get("from_pretrained") if weights else None)
    if weights:
        encoder = encoder if stored_vae is not None else load_autoencoder(encoder, vae)
        text = text.load()
    return Components(denoiser, encoder, text, config)


def inferred_model_args(vae: Any, text_encoder: Any, size: Sequence[int]) -> dict[str, Any]:
    """What the other parts decide of a denoiser, for clips of (frames, height, width)."""
    return {
        "input_size": list(vae.latent_size(tuple(size))),
        "in_channels": vae.latent_channels,
        **text_encoder.denoiser_args,
    }


def complete(model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's config with what the run knows filled in, as far as the model takes it.

    ConfigError for a contradiction, and for class labels where the model takes captions.
    """
    takes = inspect.signature(constructor(MODELS, model["type"])).parameters
    condition = given.get("condition", "text")
    if condition != "text" and "condition" not in takes:
        raise ConfigError(
            f"config: key 'text_encoder': it gives classes ({condition}), and {model['type']} takes captions; allowed: an "
            "encoder of captions, such as t5; change it, or take a model by class, such as DiT"
        )
    config = {key: value for key, value in model.items() if key != "from_pretrained"}
    for key, value in given.items():
        if key not in takes:
            continue
        stated = config.get(key, value)
        if (list(stated) if isinstance(stated, list | tuple) else stated) != value:
            raise ConfigError(
                f"config: key 'model.{key}': found {stated}; allowed: {value}, which the dataset, vae and text_encoder "
                f"give; remove the key"
            )
        config[key] = value
    return config


def build_autoencoder(config: Mapping[str, Any], *, seed: int = 0) -> Any:
    """Build an autoencoder without its weights; initial weights depend on `seed` alone."""
    with _initial_weights(seed):
        return build(VAES, dict(config))


def build_denoiser(config: Mapping[str, Any], *, seed: int = 0, pretrained: str | None = None) -> nn.Module:
    """Build a denoiser from its complete config; initial weights depend on `seed` alone."""
    with _initial_weights(seed):
        model = build(MODELS, dict(config))
    if pretrained is not None:
        load_weights(model, pretrained)
    return model


def load_autoencoder(vae: Any, config: Mapping[str, Any]) -> Any:
    """Read its weights; what no `from_pretrained` names stays as it was initialised, which is good for debugging only."""
    if config.get("from_pretrained") is None:
        logger().warning("vae: no from_pretrained, so latents come from untrained weights; fine for a debug run only")
    return vae.load()  # without a from_pretrained of its own, parts of it may have one


@contextmanager
def _initial_weights(seed: int) -> Iterator[None]:
    """Initialisation draws from torch's global generator: give it a seed of its own and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, "initial weights"))
        yield


def tokens(model: Any, size: Sequence[int] | None = None) -> int:
    """Latent tokens of one sample of `size` (frames, rows, columns; None = input_size): patches of the padded grid."""
    return prod(-(-length // patch) for length, patch in zip(size or model.input_size, model.patch_size, strict=True))
