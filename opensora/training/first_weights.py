"""The weights that a run starts with: of `load`, `tail_init` or `principal_start`; and mixing factors that are reset."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.log import logger
from opensora.models.read_weights import read_weights
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.hub_folder import as_list, fetch_folder
from opensora.models.vae.principal_start import principal_start
from opensora.models.vae.tail_init import tail_init
from opensora.models.weights import CONFIG_FILE, load_weights, read_config, require_kind
from opensora.registry import MODELS, VAES
from opensora.schema import TrainRun
from opensora.training.checkpoint import resolve_part, resolve_weights
from opensora.types import Batch

_MIX_FACTOR = "mix_factor"  # name of the parameter whose sigmoid is the share of the fixed branch


_START_PIXELS = (
    2**22
)  # of all frames of the clips that principal components are taken of; those of configs/vae/train/small.py need 3.5 GB


def set_first_weights(module: nn.Module, run: TrainRun, where: str, clips: Callable[[], Iterator[Batch]]) -> None:
    """Load or compute what `load`, `tail_init` or `principal_start` names, then reset the mixing factors; without these keys
    nothing changes.

    clips: the same on every rank. Raises ConfigError or WeightsError where the weights do not fit.
    """
    if run.load is not None:
        weights = resolve_weights(run.load, ema=True)
        check_load(weights, run, where)
        _check_latent_scale(weights, module, where)
        load_weights(module, weights)
    if run.tail_init is not None:
        source = resolve_part({"from_pretrained": run.tail_init})["from_pretrained"]
        module.load_state_dict(tail_init(read_weights(fetch_folder(source)), module), strict=True)
        logger().info("tail initialization from %s", source)
    if run.principal_start:
        _start_from_components(module, where, clips)
    if run.reset_mix_factor is not None:
        reset_mix_factors(module, run.reset_mix_factor, where)


def _start_from_components(module: nn.Module, where: str, clips: Callable[[], Iterator[Batch]]) -> None:
    chosen: list[Tensor] = []
    for batch in clips():
        chosen.append(batch.video_BCTHW.float())
        if sum(clip[:, 0].numel() for clip in chosen) >= _START_PIXELS:
            break
    assert isinstance(module, CausalVAEModel)  # the schema has checked the type
    host = copy.deepcopy(module).cpu()  # eigenvectors in float64, which some devices lack
    try:
        principal_start(host, torch.cat(chosen).cpu())
    except ConfigError as error:
        raise ConfigError(f"{where}: key 'principal_start': {error}") from None
    module.load_state_dict(host.state_dict())
    logger().info("principal components of %d clips are the first weights", sum(map(len, chosen)))


def check_load(weights: Path, run: TrainRun, where: str) -> None:
    """Raise ConfigError where a weights folder holds another kind of component than the run trains."""
    require_kind(weights, VAES if run.task == "autoencoder" else MODELS, f"{where}: key 'load'")


def _check_latent_scale(weights: Path, module: nn.Module, where: str) -> None:
    """Raise ConfigError where the temporal part learned spatial latents of another scale: it is no part of the weights."""
    stored = read_config(weights).get("spatial") if (weights / CONFIG_FILE).is_file() else None
    own = getattr(module, "config", {}).get("spatial")
    if not isinstance(stored, dict) or not isinstance(own, dict):
        return
    for key in ("scaling_factor", "latent_shift", "latent_scale"):
        if as_list(stored.get(key)) != as_list(own.get(key)):
            raise ConfigError(
                f"{where}: key 'load': {weights} was trained on spatial latents with {key}={stored.get(key)}, and vae.spatial "
                f"has {own.get(key)}; allowed: the same; set vae.spatial as in that run, or vae.from_pretrained in place of load"
            )


@torch.no_grad()
def reset_mix_factors(module: nn.Module, value: float, where: str) -> None:
    """Set every mixing factor; sigmoid(value) is then the share of the fixed branch. Raises ConfigError if there is none."""
    factors = {name: each for name, each in module.named_parameters() if name.split(".")[-1] == _MIX_FACTOR}
    if not factors:
        raise ConfigError(
            f"{where}: key 'reset_mix_factor': {type(module).__name__} as configured mixes no fixed and learned branches; "
            "allowed: an autoencoder that does, such as CausalVAEModel with TimeDownsampleRes2x; remove the key"
        )
    for name, factor in factors.items():
        logger().info("%s: %.4f -> %g", name, factor.item(), value)
        factor.fill_(value)
