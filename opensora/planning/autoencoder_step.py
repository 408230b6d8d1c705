"""The training step of task 'autoencoder' on the meta device, with the networks that its loss adds."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from opensora.datasets.base import ClipSize
from opensora.parallel.step_costs import StepSizes
from opensora.parallel.tensor_parallel import check_heads
from opensora.planning.estimate import FrozenNetworks, ModelSummary, StepModel
from opensora.planning.meta_profile import StepProfile, profile_step
from opensora.planning.model_sizes import model_sizes, parameter_count
from opensora.planning.parallel_layout import ParallelLayout
from opensora.registry import DISCRIMINATORS, PERCEPTUAL, VAES, build
from opensora.schema import TrainRun


def autoencoder_step(run: TrainRun, size: ClipSize, layout: ParallelLayout) -> tuple[ModelSummary, StepModel]:
    """The step on clips of (frames, height, width) in pixels; call it on the meta device."""
    vae = build(VAES, run.vae)
    check_heads(vae, layout.tp_size)
    latent_size = tuple(vae.latent_size(size))
    discriminator = None if run.discriminator is None else build(DISCRIMINATORS, run.discriminator)
    summary = ModelSummary(
        model=type(vae).__name__,
        parameters=parameter_count(vae),
        frozen_parameters=0,
        text_parameters=0,
        latent_size=latent_size,
        tokens_per_sample=prod(latent_size),
    )
    step = StepModel(
        sizes=model_sizes(vae),
        frozen=FrozenNetworks(),
        profile_step=partial(profile_autoencoder, run, size),
        tokens=run.batch_size * prod(latent_size),
        ema=run.ema_decay is not None,
        loss_networks=_loss_networks(run, size, discriminator, layout.weight_dtype),
        discriminator=None if discriminator is None else StepSizes(parameter_count(discriminator)),
    )
    return summary, step


def profile_autoencoder(run: TrainRun, size: ClipSize, layout: ParallelLayout) -> StepProfile:
    """One micro-batch of the autoencoder on one rank."""
    latents = run.reconstruct == "latents"
    with torch.device("meta"):
        video = torch.empty(run.batch_size, 3, *size, dtype=layout.weight_dtype)
        return profile_step(
            build(VAES, run.vae).to(layout.weight_dtype),
            lambda model: model(video, None, reconstruct_latents=True)[:2] if latents else model(video, None),
            checkpointed=layout.grad_checkpoint,
            autocast=layout.autocast,
        )


def _loss_networks(
    run: TrainRun, size: ClipSize, discriminator: nn.Module | None, dtype: torch.dtype
) -> dict[str, int]:
    """Bytes of the extra networks in the loss. Of the discriminator, which runs in `dtype`, it is only the activations of
    one reconstruction: `StepModel.discriminator` has its weights."""
    networks = {}
    video = torch.empty(run.batch_size, 3, *size).requires_grad_()
    if run.perceptual is not None:
        distance = build(PERCEPTUAL, run.perceptual)
        frames = video.transpose(1, 2).flatten(0, 1)
        saved = _saved_bytes(distance, lambda model: model(frames.detach(), frames))
        networks["perceptual network"] = 4 * parameter_count(distance) + saved
    if discriminator is not None:
        networks["discriminator"] = _saved_bytes(
            discriminator.to(dtype), lambda model: model(video.to(dtype), learn=False)
        )
    return networks


def _saved_bytes(model: nn.Module, forward: Callable[[Any], Any]) -> int:
    """Bytes that autograd saves for the backward, once per storage; parameters are not activations."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, tuple[int, Tensor]] = {}  # it holds the tensor, so no other storage gets the same key

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(model)
    return sum(nbytes for nbytes, _ in storages.values())
