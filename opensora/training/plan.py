"""What a run would need, worked out without weights, data decoding or an accelerator.

The run's own modules go through a step on the meta device: see opensora/planning.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.build import DTYPES, Components, assemble, build_denoiser, tokens
from opensora.models.clip_conditioning import clip_conditions, given_latents
from opensora.models.frame_conditioning import conditioning_mode
from opensora.parallel.paper import simulate_sequence_parallel, simulate_tensor_parallel, switched_axes
from opensora.parallel.tensor_parallel import check_heads
from opensora.planning.depth_extrapolation import extrapolate_depth
from opensora.planning.estimate import Estimate, FrozenNetworks, StepModel, estimate
from opensora.planning.memory import WIDTHS, Layout, M, Sizes
from opensora.planning.meta_profile import StepProfile, profile_forward, profile_step
from opensora.planning.text_encoder_size import text_parameters
from opensora.registry import DATASETS, DISCRIMINATORS, MODELS, PERCEPTUAL, PLUGINS, VAES, build, constructor
from opensora.schema import TrainRun
from opensora.training.checkpoint import resolve_part
from opensora.training.clip_plan import build_buckets, make_clip_plan

Forward = Callable[[Any], Any]
DEPTHS = ("depth", "num_layers")  # what constructors call the number of blocks
# Arguments of plugins that a plan depends on, as they are where a plugin does not take them.
_OPTIONS: dict[str, Any] = {
    "cpu_offload": False,
    "communication_dtype": "fp32",
    "reduce_bucket_size_in_m": 12,
    "overlap_communication": None,  # wherever there are streams
    "reshard_after_forward": True,
    "tp_size": 1,
}


@dataclass(frozen=True)
class Plan:
    """Counts of one run; bytes are per rank."""

    model: str
    parameters: int  # of the trained module
    frozen_parameters: int
    text_parameters: int | None  # of the text encoder; None: nothing tells them, and nothing counts them
    latent_size: tuple[int, ...]  # frames, rows, columns
    tokens_per_sample: int
    samples_per_step: int
    report: Any  # datasets.report.Report; None: the data were not looked at
    estimate: Estimate
    subject: StepModel
    num_images: int = 0  # beside each clip, their tokens among those of the sample

    @property
    def memory(self) -> dict[str, int]:
        return self.estimate.memory

    @property
    def memory_total(self) -> int:
        return self.estimate.total

    def with_layout(self, **changes: Any) -> Estimate:
        """The same step, shared in another way."""
        return estimate(self.subject, replace(self.estimate.layout, **changes))


def plan(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> Plan:
    """Count parameters, tokens, rows and bytes for `world` ranks; raises ConfigError or DataError as training would.

    Of buckets it is the one with the largest micro-batch. sp_size: ranks that share each sample, its tokens or, under
    hybrid, its heads. gloo: ranks are processes on CPUs.
    """
    run = chosen(run)
    dataset = build(DATASETS, run.dataset)
    clips = make_clip_plan(run, dataset, "config")
    report: Any = clips.report
    size = clips.size
    if clips.order is not None:  # what the largest bucket needs
        with torch.device("meta"):
            line = clips.largest(build(VAES, run.vae))
        run, size = replace(run, batch_size=line.batch_size), line.size
    elif hasattr(dataset, "inspect") and run.load_video_features is None:  # with these no footage is needed
        report = dataset.inspect()  # opens every video
        report.require_rows()
    return replace(estimate_run(run, size, world, sp_size, gloo), report=report)


def dry_run_without_data(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> Plan:
    """`plan` by the config alone, where the data are elsewhere: no rows are judged, and every bucket is reckoned with."""
    run = chosen(run)
    buckets = build_buckets(run, "config")
    if buckets is None:
        return estimate_run(run, _size_in(run.dataset), world, sp_size, gloo)
    with torch.device("meta"):
        vae: Any = build(VAES, run.vae)
    taken = [(buckets.batch_size(each), buckets.size(each)) for each in buckets.all if buckets.takes(each)]
    batch_size, size = max(taken, key=lambda each: each[0] * prod(vae.latent_size(each[1])))
    return estimate_run(replace(run, batch_size=batch_size), size, world, sp_size, gloo)


def _size_in(dataset: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height, width that a data set is told, or has by default."""
    if "videos" in dataset:  # with pictures beside them, padded to the larger of the two
        frames, *sides = _size_in(dataset["videos"])
        if dataset["pictures"] is not None:
            sides = [max(pair) for pair in zip(sides, _size_in(dataset["pictures"])[1:], strict=True)]
        return frames, sides[0], sides[1]
    takes = inspect.signature(constructor(DATASETS, dataset["type"])).parameters
    told = {name: takes[name].default for name in ("num_frames", "image_size") if name in takes} | dataset
    if not all(
        name in told and told[name] not in (None, inspect.Parameter.empty) for name in ("num_frames", "image_size")
    ):
        raise ConfigError(
            "config: key 'dataset': num_frames or image_size is missing; allowed: both, or bucket_config; set them, or plan "
            "with the data"
        )
    return told["num_frames"], *told["image_size"]


def subject_of(run: TrainRun, size: tuple[int, int, int]) -> StepModel:
    """The step of a run with clips of (frames, height, width), however it is going to be shared."""
    return estimate_run(run, size, 1).subject


def chosen(run: TrainRun) -> TrainRun:
    """The run with the dtype that every accelerator of today chooses, where it says auto, and the weights that it names."""
    return replace(run, dtype="bf16" if run.dtype == "auto" else run.dtype, vae=resolve_part(run.vae))


def estimate_run(run: TrainRun, size: tuple[int, int, int], world: int, sp_size: int = 1, gloo: bool = False) -> Plan:
    """`plan` for clips of (frames, height, width) in pixels, without a data set."""
    with torch.device("meta"):
        prepare = _autoencoder if run.task == "autoencoder" else _denoiser
        return prepare(run, size, layout_of(run, world, sp_size, gloo))


def layout_of(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> Layout:
    """How the run's own plugin shares a step between `world` ranks, of which `sp_size` see the same samples."""
    takes = inspect.signature(constructor(PLUGINS, run.plugin)).parameters
    defaults = {name: each.default for name, each in takes.items() if name in _OPTIONS}
    asked = {**_OPTIONS, **defaults, **run.plugin_config}
    sp_size = max(sp_size, asked["tp_size"])
    overlap = asked["overlap_communication"]
    return Layout(
        plugin=run.plugin,
        world=world,
        micro_batches=max(1, run.micro_batches * sp_size // world),
        dtype=run.dtype,
        sp_size=sp_size // asked["tp_size"],
        sp_mode=run.sp_mode,
        grad_checkpoint=run.grad_checkpoint,
        cpu_offload=asked["cpu_offload"],
        communication_dtype=asked["communication_dtype"],
        bucket_elements=M * asked["reduce_bucket_size_in_m"],
        overlap=not gloo if overlap is None else overlap,
        keep_gathered=not asked["reshard_after_forward"],
        tp_size=asked["tp_size"],
        gloo=gloo,
    )


def _denoiser(run: TrainRun, size: tuple[int, int, int], layout: Layout) -> Plan:
    parts = assemble(
        run.model or {}, run.vae, run.text_encoder or {}, num_frames=size[0], image_size=size[1:], weights=False
    )
    whole = parts.model
    check_heads(whole, layout.tp_size)
    takes = inspect.signature(constructor(MODELS, parts.model_config["type"])).parameters
    key = next((name for name in DEPTHS if name in takes), "")

    def rehearse_layout(asked: Layout) -> StepProfile:
        def at(depth: int | None) -> StepProfile:
            config = parts.model_config if depth is None else {**parts.model_config, key: depth}
            with torch.device("meta"):
                model = build_denoiser(config).to(_working(asked))
                tokens_on_paper = simulate_sequence_parallel(model, asked.sp_size, asked.sp_mode)  # type: ignore[arg-type]
                heads_on_paper = simulate_tensor_parallel(model, asked.tp_size)
                found = _rehearse(model, _denoise(run, size, asked), asked)
            return replace(found, sent=tokens_on_paper.sent + heads_on_paper.sent)

        if not key:
            return at(None)
        return extrapolate_depth(at, parts.model_config[key] if key in parts.model_config else takes[key].default)

    text = text_parameters(parts.text_encoder)
    frames, *grid = whole.input_size
    per_sample = tokens(whole, (frames + _num_images(run), *grid))
    subject = StepModel(
        sizes=replace(_sizes(whole), cut=_cut_elements(parts.model_config, layout.tp_size)),
        frozen=_frozen(run, parts, text, size),
        profile_step=rehearse_layout,
        tokens=run.batch_size * per_sample,
        ema=run.ema_decay is not None,
        max_sequence_ranks=_most_ranks(whole, run.sp_mode),
    )
    return Plan(
        model=type(whole).__name__,
        parameters=_parameters(whole),
        frozen_parameters=_parameters(parts.vae),
        text_parameters=None if text is None else text[0],
        latent_size=tuple(whole.input_size),
        tokens_per_sample=per_sample,
        samples_per_step=run.batch_size * run.micro_batches,
        report=None,
        estimate=estimate(subject, layout),
        subject=subject,
        num_images=_num_images(run),
    )


def _denoise(run: TrainRun, size: tuple[int, int, int], layout: Layout) -> Forward:
    """A call of the model as the task makes it, with the text's mask, and pictures and frame masks where the run has them."""
    n, num_images = run.batch_size, _num_images(run)

    def forward(model: Any) -> Any:
        frames, *grid = model.input_size
        latents = torch.empty(n, model.in_channels, frames + num_images, *grid, dtype=_working(layout))
        told: dict[str, Any] = clip_conditions(model, size, torch.empty(n))
        text = _text(model, n, DTYPES[run.dtype])
        if text.is_floating_point():
            told["mask"] = torch.ones(n, model.model_max_length, dtype=torch.long)
            told["drop_B"] = torch.zeros(n, dtype=torch.bool)
        if num_images:  # a caption each, after the clip's
            text = text.repeat(1, 1 + num_images, 1, 1)
            told |= {"mask": told["mask"][:, None].repeat(1, 1 + num_images, 1), "use_image_num": num_images}
        if model.conditioned:
            told |= given_latents(latents, [], model.null_text(n).to(text))
        elif run.mask_ratios is not None and conditioning_mode(run.model or {}, "mask_ratios") == "masks":
            told["x_mask"] = torch.ones(n, latents.shape[2], dtype=torch.bool)
        return model(latents, torch.empty(n), text, **told)

    return forward


def _num_images(run: TrainRun) -> int:
    """How many a JointDataset puts beside each clip."""
    return run.dataset.get("use_image_num", 0)


def _text(model: Any, n: int, dtype: torch.dtype) -> Tensor:
    """What a text encoder would give for n captions: token states, or labels for a model by class."""
    if getattr(model, "num_classes", None) is not None:
        return torch.zeros(n, dtype=torch.long)
    return torch.empty(n, 1, model.model_max_length, model.caption_channels, dtype=dtype)


def _frozen(
    run: TrainRun, parts: Components, text: tuple[int, int] | None, size: tuple[int, int, int]
) -> FrozenNetworks:
    """The autoencoder and the text encoder, as far as the run loads them."""
    weights, held, peak, flops = {}, 0, 0, 0
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
        weights["frozen autoencoder"] = WIDTHS[run.dtype] * _parameters(vae)
    if run.load_text_features is None and text is not None:
        held = WIDTHS[run.dtype] * text[0]
        flops += 2 * text[1] * run.batch_size * (1 + num_images) * getattr(parts.text_encoder, "max_tokens", 0)
    return FrozenNetworks(weights, held, run.text_encoder_parallel, peak, flops)


def _autoencoder(run: TrainRun, size: tuple[int, int, int], layout: Layout) -> Plan:
    def rehearse_layout(asked: Layout) -> StepProfile:
        with torch.device("meta"):
            video = torch.empty(run.batch_size, 3, *size, dtype=_working(asked))
            return _rehearse(build(VAES, run.vae).to(_working(asked)), lambda model: model(video, None), asked)

    vae = build(VAES, run.vae)
    check_heads(vae, layout.tp_size)
    latent_size = tuple(vae.latent_size(size))
    count = latent_size[0] * latent_size[1] * latent_size[2]
    subject = StepModel(
        sizes=_sizes(vae),
        frozen=FrozenNetworks(),
        profile_step=rehearse_layout,
        tokens=run.batch_size * count,
        ema=run.ema_decay is not None,
        beside=_loss_bytes(run, torch.empty(run.batch_size, 3, *size).requires_grad_(), layout),
        rival=None if run.discriminator is None else Sizes(_parameters(build(DISCRIMINATORS, run.discriminator))),
    )
    return Plan(
        model=type(vae).__name__,
        parameters=_parameters(vae),
        frozen_parameters=0,
        text_parameters=0,
        latent_size=latent_size,
        tokens_per_sample=count,
        samples_per_step=run.batch_size * run.micro_batches,
        report=None,
        estimate=estimate(subject, layout),
        subject=subject,
    )


def _working(layout: Layout) -> torch.dtype:
    return DTYPES[layout.dtype] if layout.width == WIDTHS[layout.dtype] else torch.float32


def _rehearse(model: nn.Module, forward: Forward, layout: Layout) -> StepProfile:
    return profile_step(model, forward, checkpointed=layout.grad_checkpoint, autocast=layout.dtype == "bf16")


def _sizes(model: Any) -> Sizes:
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    blocks = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in model.checkpoint_blocks()]
    return Sizes(
        trained=sum(trained),
        fixed=_parameters(model) - sum(trained) + sum(b.numel() for b in model.buffers()),
        largest=max(trained),
        blocks=max(blocks, default=0),
        outside=sum(trained) - sum(blocks),
    )


def _cut_elements(config: dict[str, Any], size: int) -> int:
    """Trained elements of the whole denoiser of which each of `size` ranks gets its part under hybrid."""
    if size == 1:
        return 0
    model = build_denoiser(config)
    whole = _sizes(model).trained
    simulate_tensor_parallel(model, size)
    return (whole - _sizes(model).trained) * size // (size - 1)


def _most_ranks(model: Any, mode: Any) -> int:
    """Ranks that can share the tokens of a sample, each with some of the frames or heads that attention divides.

    Fills the seams of the model, which must be on the meta device.
    """
    counts = {"frames": -(-model.input_size[0] // model.patch_size[0]), "heads": getattr(model, "num_heads", 1)}
    return min((counts[axis] for axis in switched_axes(model, mode)), default=1)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _loss_bytes(run: TrainRun, video: Tensor, layout: Layout) -> dict[str, int]:
    """What networks beside an autoencoder, that its loss needs, hold; of the discriminator, what it keeps of one
    reconstruction: Subject.rival is the rest."""
    found = {}
    if run.perceptual is not None:
        distance = build(PERCEPTUAL, run.perceptual)
        frames = video.transpose(1, 2).flatten(0, 1)
        kept = _saved_bytes(distance, lambda model: model(frames.detach(), frames))
        found["perceptual network"] = 4 * _parameters(distance) + kept
    if run.discriminator is not None:
        working = _working(layout)
        rival = build(DISCRIMINATORS, run.discriminator).to(working)
        found["discriminator"] = _saved_bytes(rival, lambda model: model(video.to(working), learn=False))
    return found


def activation_bytes(model: Any, forward: Forward, checkpointed: bool) -> int:
    """Bytes alive at most in a forward and backward besides parameters and finished gradients, on the meta device."""
    return profile_step(model, forward, checkpointed=checkpointed).peak


def _saved_bytes(model: nn.Module, forward: Forward) -> int:
    """Bytes autograd keeps for backward, counted once per storage; parameters are not activations."""
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
