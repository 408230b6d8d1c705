"""The training step of task 'diffusion' on the meta device: a denoiser, and the frozen networks that encode for it."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.base import ClipSize
from opensora.interfaces import Denoiser
from opensora.models.build import Components, assemble, build_denoiser, num_tokens
from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.frame_conditioning import conditioning_mode, frame_conditioning
from opensora.parallel.sequence_parallel import Mode
from opensora.parallel.step_costs import WIDTHS
from opensora.parallel.tensor_parallel import check_heads
from opensora.planning.depth_extrapolation import extrapolate_depth
from opensora.planning.estimate import FrozenNetworks, ModelSummary, StepModel
from opensora.planning.meta_profile import StepProfile, profile_forward, profile_step
from opensora.planning.model_sizes import model_sizes, parameter_count
from opensora.planning.parallel_layout import ParallelLayout
from opensora.planning.simulated_ranks import shared_axes, simulate_sequence_parallel, simulate_tensor_parallel
from opensora.planning.text_encoder_size import text_parameters
from opensora.registry import MODELS, constructor
from opensora.schema import TrainRun
from opensora.types import DTYPES

_DEPTH_KEYS = ("depth", "num_layers")  # names of the number of blocks among the arguments of denoisers


def denoiser_step(run: TrainRun, size: ClipSize, layout: ParallelLayout) -> tuple[ModelSummary, StepModel]:
    """The step on clips of (frames, height, width) in pixels; call it on the meta device."""
    parts = assemble(
        run.model or {},
        run.vae,
        run.text_encoder or {},
        num_frames=size[0],
        image_size=size[1:],
        weights=False,
        lengths=(),  # a table of costs may have sizes that no run has; dry_run checks those of a run
    )
    model = parts.model
    check_heads(model, layout.tp_size)
    text = text_parameters(parts.text_encoder)
    frames, *grid = model.input_size
    tokens_per_sample = num_tokens(model, (frames + _num_images(run), *grid))
    summary = ModelSummary(
        model=type(model).__name__,
        parameters=parameter_count(model),
        frozen_parameters=parameter_count(parts.vae),
        text_parameters=None if text is None else text[0],
        latent_size=tuple(model.input_size),
        tokens_per_sample=tokens_per_sample,
        num_images=_num_images(run),
    )
    step = StepModel(
        sizes=replace(model_sizes(model), tensor_sharded=_tensor_sharded(parts.model_config, layout.tp_size)),
        frozen=_frozen_networks(run, parts, text, size),
        profile_step=partial(profile_denoiser, run, parts.model_config, size),
        tokens=run.batch_size * tokens_per_sample,
        ema=run.ema_decay is not None,
        max_sequence_ranks=_max_sequence_ranks(model, run.sp_mode),
    )
    return summary, step


def profile_denoiser(run: TrainRun, config: dict[str, Any], size: ClipSize, layout: ParallelLayout) -> StepProfile:
    """One micro-batch of the denoiser on one rank; a deep one is extrapolated from two shallow ones."""
    parameters = inspect.signature(constructor(MODELS, config["type"])).parameters
    key = next((name for name in _DEPTH_KEYS if name in parameters), None)
    if key is None:
        return _profile(run, size, layout, config)
    depth = config[key] if key in config else parameters[key].default
    return extrapolate_depth(lambda blocks: _profile(run, size, layout, {**config, key: blocks}), depth)


def _profile(run: TrainRun, size: ClipSize, layout: ParallelLayout, config: dict[str, Any]) -> StepProfile:
    with torch.device("meta"):
        model = build_denoiser(config).to(layout.weight_dtype)
        sequence_group = simulate_sequence_parallel(model, layout.sp_size, layout.sp_mode)  # type: ignore[arg-type]
        tensor_group = simulate_tensor_parallel(model, layout.tp_size)
        profile = profile_step(
            model,
            partial(_forward, run, size, layout.weight_dtype),
            checkpointed=layout.grad_checkpoint,
            autocast=layout.autocast,
        )
    return replace(profile, sent=sequence_group.sent + tensor_group.sent)


def _forward(run: TrainRun, size: ClipSize, dtype: torch.dtype, model: Denoiser) -> Tensor:
    """Call the model as the task does: with the text's mask, and with images and frame masks where the run has them."""
    n, num_images = run.batch_size, _num_images(run)
    frames, *grid = model.input_size
    latents = torch.empty(n, model.in_channels, frames + num_images, *grid, dtype=dtype)
    kwargs: dict[str, Any] = clip_conditioning(model, size, torch.empty(n))
    text = _text_states(model, n, DTYPES[run.dtype])
    if text.is_floating_point():
        kwargs["mask"] = torch.ones(n, model.model_max_length, dtype=torch.long)
        kwargs["drop_B"] = torch.zeros(n, dtype=torch.bool)
    if num_images:  # each has a caption, after the clip's
        text = text.repeat(1, 1 + num_images, 1, 1)
        kwargs |= {"mask": kwargs["mask"][:, None].repeat(1, 1 + num_images, 1), "use_image_num": num_images}
    if model.conditioned:
        y_null = model.null_text(n)
        assert y_null is not None  # conditioned models have a null caption
        kwargs |= frame_conditioning(latents, [], y_null.to(text))
    elif run.mask_ratios is not None and conditioning_mode(run.model or {}, "mask_ratios") == "masks":
        kwargs["x_mask"] = torch.ones(n, latents.shape[2], dtype=torch.bool)
    return model(latents, torch.empty(n), text, **kwargs)


def _text_states(model: Denoiser, n: int, dtype: torch.dtype) -> Tensor:
    """The text encoder's output for n captions: token states, or labels for a class-conditional model."""
    if getattr(model, "num_classes", None) is not None:
        return torch.zeros(n, dtype=torch.long)
    return torch.empty(n, 1, model.model_max_length, model.caption_channels, dtype=dtype)


def _num_images(run: TrainRun) -> int:
    """Images that a JointDataset appends to each clip."""
    return run.dataset.get("use_image_num", 0)


def _frozen_networks(run: TrainRun, parts: Components, text: tuple[int, int] | None, size: ClipSize) -> FrozenNetworks:
    """The autoencoder and the text encoder, unless the run reads stored features in place of one."""
    weights, text_bytes, peak, flops = {}, 0, 0, 0
    num_images = _num_images(run)
    if run.load_video_features is None:
        vae = parts.vae.to(DTYPES[run.dtype]).eval().requires_grad_(False)
        video = torch.empty(run.batch_size, 3, *size, dtype=DTYPES[run.dtype])
        peak, flops = profile_forward(lambda: vae.encode(video), vae)
        peak += video.nbytes
        if num_images:
            images = torch.empty(run.batch_size * num_images, 3, 1, *size[1:], dtype=DTYPES[run.dtype])
            image_peak, image_flops = profile_forward(lambda: vae.encode(images), vae)
            peak, flops = max(peak, image_peak + video.nbytes) + images.nbytes, flops + image_flops
        weights["frozen autoencoder"] = WIDTHS[run.dtype] * parameter_count(vae)
    if run.load_text_features is None and text is not None:
        total, multiplied = text
        text_bytes = WIDTHS[run.dtype] * total
        flops += 2 * multiplied * run.batch_size * (1 + num_images) * getattr(parts.text_encoder, "max_tokens", 0)
    return FrozenNetworks(weights, text_bytes, run.text_encoder_parallel, peak, flops)


def _tensor_sharded(config: dict[str, Any], tp_size: int) -> int:
    """Trained elements of the whole denoiser that tensor parallelism over `tp_size` ranks divides."""
    if tp_size == 1:
        return 0
    model = build_denoiser(config)
    whole = model_sizes(model).trained
    simulate_tensor_parallel(model, tp_size)
    return (whole - model_sizes(model).trained) * tp_size // (tp_size - 1)


def _max_sequence_ranks(model: Denoiser, mode: Mode) -> int:
    """The most ranks that can share a sample's tokens so that each has some of the frames or heads that attention divides.

    Fills the seams of the model, which must be on the meta device.
    """
    counts = {"frames": -(-model.input_size[0] // model.patch_size[0]), "heads": getattr(model, "num_heads", 1)}
    return min((counts[axis] for axis in shared_axes(model, mode)), default=1)
