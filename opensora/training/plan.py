"""What a run would need, worked out without weights, data decoding or an accelerator.

Parameters and activations are counted on the meta device: the same modules, no memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from opensora.models.assemble import DTYPES, assemble, tokens
from opensora.models.conditions import clip_conditions
from opensora.parallel.activation import checkpoint_activations
from opensora.registry import DATASETS, DISCRIMINATORS, PERCEPTUAL, VAES, build
from opensora.schema import TrainRun

BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Plan:
    """Counts of one run; bytes are per rank."""

    model: str
    parameters: int  # of the trained module
    frozen_parameters: int
    latent_size: tuple[int, ...]  # frames, rows, columns
    tokens_per_sample: int
    samples_per_step: int
    report: Any  # datasets.report.Report
    memory: dict[str, int]

    @property
    def memory_total(self) -> int:
        return sum(self.memory.values())


def plan(run: TrainRun, world: int, sp_size: int = 1) -> Plan:
    """Count parameters, tokens, rows and bytes for `world` ranks; raises ConfigError or DataError as training would.

    sp_size: ranks that share the tokens of a sample; what lies before and after the blocks each of them holds whole.
    """
    if run.dtype == "auto":
        run = replace(run, dtype="bf16")  # what every accelerator of today chooses
    dataset = build(DATASETS, run.dataset)
    report = dataset.inspect() if hasattr(dataset, "inspect") else dataset.report()  # inspect opens every video
    report.require_rows()
    height, width = dataset.image_size
    size = (dataset.num_frames, height, width)
    with torch.device("meta"):
        if run.task == "autoencoder":
            trained: Any = build(VAES, run.vae)
            video = torch.empty(run.batch_size, 3, *size, dtype=DTYPES[run.dtype])
            latent_size = tuple(trained.latent_size(size))
            forward: Callable[[nn.Module], Any] = lambda model: model(video, None)  # noqa: E731
            count, frozen = latent_size[0] * latent_size[1] * latent_size[2], 0
            beside = _loss_bytes(run, video.float().requires_grad_(), world)
        else:
            parts = assemble(
                run.model or {},
                run.vae,
                run.text_encoder or {},
                num_frames=dataset.num_frames,
                image_size=dataset.image_size,
                weights=False,
            )
            trained = parts.model
            latent_size = tuple(trained.input_size)
            latents = torch.empty(run.batch_size, trained.in_channels, *latent_size, dtype=DTYPES[run.dtype])
            text = _text(trained, run.batch_size, DTYPES[run.dtype])
            times = torch.empty(run.batch_size)
            told = clip_conditions(trained, size, torch.empty(run.batch_size))
            forward = lambda model: model(latents, times, text, **told)  # noqa: E731
            count, frozen, beside = tokens(trained), _parameters(parts.vae), {}
        trained = trained.to(DTYPES[run.dtype] if run.plugin.startswith("zero") else torch.float32)
        activations = activation_bytes(trained, forward, run.grad_checkpoint) // sp_size
    parameters = _parameters(trained)
    memory = _state_bytes(run, parameters, world) | {
        "frozen autoencoder": frozen * BYTES[run.dtype],
        f"activations of {run.batch_size} sample(s)": activations,
        **beside,
    }
    return Plan(
        model=type(trained).__name__,
        parameters=parameters,
        frozen_parameters=frozen,
        latent_size=latent_size,
        tokens_per_sample=count,
        samples_per_step=run.batch_size * run.micro_batches,
        report=report,
        memory={name: value for name, value in memory.items() if value},
    )


def _text(model: Any, n: int, dtype: torch.dtype) -> Tensor:
    """What a text encoder would give for n captions: token states, or labels for a model by class."""
    if getattr(model, "num_classes", None) is not None:
        return torch.zeros(n, dtype=torch.long)
    return torch.empty(n, 1, model.model_max_length, model.caption_channels, dtype=dtype)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _state_bytes(run: TrainRun, parameters: int, world: int) -> dict[str, int]:
    """Weights, gradients, fp32 masters and moments, as each plugin keeps them."""
    shards = world if run.plugin.startswith("zero") else 1
    working = BYTES[run.dtype] if run.plugin.startswith("zero") else 4
    masters = 4 * parameters // shards if run.plugin.startswith("zero") else 0  # ddp trains the fp32 weights themselves
    gradients = working * parameters // (world if run.plugin.startswith("zero2") else 1)
    return {
        "weights": working * parameters,
        "fp32 master weights": masters,
        "gradients": gradients,
        "optimizer moments": 8 * parameters // shards,
        "averaged weights (EMA)": 4 * parameters // shards if run.ema_decay is not None else 0,
    }


def _loss_bytes(run: TrainRun, video: Tensor, world: int) -> dict[str, int]:
    """The networks beside an autoencoder that its loss needs, with what they keep of one reconstruction."""
    found = {}
    if run.perceptual is not None:
        distance = build(PERCEPTUAL, run.perceptual)
        frames = video.transpose(1, 2).flatten(0, 1)
        kept = _saved_bytes(distance, lambda model: model(frames.detach(), frames))
        found["perceptual network"] = 4 * _parameters(distance) + kept
    if run.discriminator is not None:
        rival = build(DISCRIMINATORS, run.discriminator)
        state = sum(_state_bytes(replace(run, ema_decay=None), _parameters(rival), world).values())
        working = DTYPES[run.dtype] if run.plugin.startswith("zero") else torch.float32
        kept = _saved_bytes(rival.to(working), lambda model: model(video.to(working), learn=False))
        found["discriminator"] = state + kept
    return found


def activation_bytes(model: Any, forward: Callable[[nn.Module], Any], checkpointed: bool) -> int:
    """Bytes autograd keeps for backward, counted once per storage; parameters are not activations.

    With checkpointing: the block inputs, and one block's activations while it is recomputed.
    """
    everything = _saved_bytes(model, forward)
    if not checkpointed:
        return everything
    blocks = model.checkpoint_blocks()
    checkpoint_activations(blocks)
    return _saved_bytes(model, forward) + everything // max(1, len(blocks))


def _saved_bytes(model: nn.Module, forward: Callable[[nn.Module], Any]) -> int:
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}  # the tensor is held so that its storage id stays its own

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in parameters:
            seen[storage._cdata] = (storage.nbytes(), saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        forward(model)
    return sum(size for size, _ in seen.values())
