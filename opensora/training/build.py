"""From a checked config to a `TrainState`: parts, engine, data, and the checkpoint to go on from."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from opensora import __version__
from opensora.config import as_dict, digest
from opensora.datasets.frame_masks import FrameConditions, FrameMasks
from opensora.datasets.loader import build_loader
from opensora.errors import ConfigError
from opensora.evaluation.metrics.perceptual_distance import NAMES
from opensora.interfaces import Autoencoder, Scheduler
from opensora.log import logger
from opensora.models.build import Components, assemble, build_autoencoder
from opensora.models.frame_conditioning import conditioning_mode
from opensora.models.frame_counts import require_frame_counts
from opensora.models.shape_checks import ShapeError
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.engine import EngineOptions
from opensora.parallel.group_leader import broadcast_batches
from opensora.parallel.sequence_parallel import shard_sequence
from opensora.parallel.tensor_parallel import sequence_subgroup
from opensora.parallel.world import World
from opensora.platforms import select
from opensora.registry import DATASETS, LR_SCHEDULERS, OPTIMIZERS, PERCEPTUAL, PLUGINS, SCHEDULERS, build
from opensora.rng import key_seed
from opensora.run_paths import Origin
from opensora.schema import TrainRun
from opensora.training.anomalies import AnomalyDetector
from opensora.training.autoencoder_losses import Distance
from opensora.training.autoencoder_task import STATISTICS_CLIPS, AutoencoderTask
from opensora.training.cached_features import stored_clips, stored_latents, stored_texts
from opensora.training.caption_check import drop_empty_captions, warn_of_long_captions
from opensora.training.checkpoint import has_checkpoint, resolve_part
from opensora.training.clip_lengths import clip_lengths
from opensora.training.clip_plan import ClipPlan, check_latents, make_clip_plan, require_fixed_size, single_clip_batches
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.discriminator_trainer import DiscriminatorTrainer, build_discriminator
from opensora.training.distributed_codec import distributed_codec
from opensora.training.ema import Ema
from opensora.training.first_weights import check_load, set_first_weights
from opensora.training.image_joint import check_joint, check_strides
from opensora.training.loop import TrainState
from opensora.training.memory_warmup import warm_up
from opensora.training.metrics import Metrics
from opensora.training.optimizer import parameter_groups
from opensora.training.parallel_sizes import check_parallel_sizes, tensor_size
from opensora.training.profiling import StepTrace
from opensora.training.reconstruction_check import log_reconstruction
from opensora.training.run_folder import ReplayFolder, RunFolder, claim_folder
from opensora.training.signals import StopRequest
from opensora.training.task import Task
from opensora.types import DTYPES, Batch


def check_world(run: TrainRun, data_size: int, where: str) -> None:
    """Raise ConfigError when the ranks cannot share the micro-batches evenly."""
    if run.micro_batches % data_size:
        raise ConfigError(
            f"{where}: key 'micro_batches': found {run.micro_batches} for {data_size} data ranks; allowed: a multiple of "
            f"{data_size}; set micro_batches={-(-run.micro_batches // data_size) * data_size} or start another number of ranks"
        )


def build_training(run: TrainRun, world: World, where: str, replay_from: int | None = None) -> TrainState:
    """Build everything and restore the newest good checkpoint of `run_dir`; all ranks call it.

    replay_from: only read `run_dir`, and restore the newest checkpoint after at most this many optimizer steps.
    """
    check_parallel_sizes(run, world, where)
    check_world(run, world.data_size, where)
    plugin = build(PLUGINS, {"type": run.plugin, **run.plugin_config})
    plugin.check(world)
    masks = build_masks(run, where)
    trains = replay_from is None
    if run.load is not None:
        check_load(Path(run.load), run, where)
    lock = claim_folder(run, world) if trains else None  # first: a folder that cannot be written costs nothing yet
    stop = StopRequest(
        announces=world.is_main
    ).listen()  # from here on a signal ends the run after a step, with its state saved
    clips = make_clip_plan(run, build(DATASETS, run.dataset), where)
    for line in clips.report.lines():
        logger().info(line)
    clips = replace(clips, dataset=stored_clips(run, clips.dataset, clips.sizes, where))
    task = _build_task(run, world, clips, masks, where)
    if not (trains and has_checkpoint(run.run_dir)):  # which holds all weights
        set_first_weights(task.trained, run, where, lambda: _statistics_clips(run, clips))
    if run.grad_checkpoint:
        checkpoint_activations(task.trained.checkpoint_blocks())
    if world.sequence_size > tensor_size(run):
        shard_sequence(
            task.trained, sequence_subgroup(world.sequence_group, tensor_size(run), world.timeout), run.sp_mode
        )
    _check_lr_groups(run, task.trained, where)
    engine = plugin.apply(task.trained.train(), _engine_options(run, run.optimizer, world, task.trained))
    ema = None if run.ema_decay is None else Ema(engine, run.ema_decay)
    anomalies = AnomalyDetector(
        run.on_nan,
        run.spike_factor,
        run.spike_window,
        run.on_spike,
        run.max_skips,
        loss_changes_at=None if run.discriminator is None else run.disc_start,
    )
    parts = (run, world, engine, ema, task, anomalies)
    folder = RunFolder(*parts, lock=lock) if replay_from is None else ReplayFolder(*parts, up_to=replay_from)
    folder.rows = f"{clips.report.rows} rows of which {clips.report.kept} are used"
    stop.also_when(folder.save_failed)
    start_step, bad_rows = folder.resume()
    if isinstance(task, DiffusionTask) and trains and start_step == 0 and world.is_main:
        log_reconstruction(run, task.codec.vae, clips)
    if run.warmup_buckets and trains and start_step < run.steps:
        warm_up(task, engine, clips.largest(task.autoencoder), run.seed)
    shown = world.is_main and trains
    metrics = Metrics(folder.path, start_step, run.steps, shown, run.wandb, as_dict(run))
    return TrainState(
        run=run,
        world=world,
        task=task,
        engine=engine,
        ema=ema,
        schedule=build(LR_SCHEDULERS, run.lr_scheduler, steps=run.steps, warmup_steps=run.warmup_steps),
        batches=_batches(run, clips, world, start_step),
        validation=_validation(run, world, task, where),
        metrics=metrics,
        checkpointer=folder,
        stop=stop,
        start_step=start_step,
        bad_rows=bad_rows,
        profile_steps=StepTrace(
            run.profile_steps if world.is_main else 0, select(world.device.type), folder.path / "profile", "rank0"
        ),
        anomalies=anomalies,
    )


def _check_lr_groups(run: TrainRun, module: nn.Module, where: str) -> None:
    """Raise ConfigError for a part of names that no trained weight has."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for part in run.lr_groups:
        if not any(part in name for name in names):
            raise ConfigError(
                f"{where}: key 'lr_groups': found {part!r}, which is in no name of a trained weight of "
                f"{type(module).__name__}; allowed: a part of a name, such as {names[0]!r}; correct or remove it"
            )


def build_discriminator_trainer(
    run: TrainRun, world: World, autoencoder: Autoencoder | None, where: str
) -> DiscriminatorTrainer | None:
    """The discriminator under the same plugin as the model; None without one.

    Raises ConfigError when the autoencoder's last layer, where the two losses are balanced, does not train.
    """
    if run.discriminator is None:
        return None
    assert autoencoder is not None  # only task 'autoencoder' has a discriminator
    if not autoencoder.last_layer.requires_grad:
        raise ConfigError(
            f"{where}: key 'discriminator': {run.vae['type']} as configured does not train its last layer, where the two "
            "losses are balanced; allowed: an autoencoder that trains it; remove the key or let the last layer train"
        )
    discriminator = build_discriminator(run.discriminator, seed=run.seed)
    plugin = build(PLUGINS, {"type": run.plugin, **run.plugin_config})
    engine = plugin.apply(discriminator.train(), _engine_options(run, run.disc_optimizer or run.optimizer, world))
    return DiscriminatorTrainer(engine, run.disc_loss, run.disc_weight, run.disc_start)


def _engine_options(
    run: TrainRun, optimizer: dict[str, Any], world: World, grouped: nn.Module | None = None
) -> EngineOptions:
    """grouped: the module whose weights `lr_groups` divides; None: they all have the optimizer's learning rate."""

    def make_optimizer(params: Sequence[nn.Parameter]) -> Optimizer:
        if grouped is None or not run.lr_groups:
            return build(OPTIMIZERS, optimizer, params=params)
        groups = parameter_groups(grouped.named_parameters(), params, run.lr_groups)
        return build(OPTIMIZERS, optimizer, params=groups)

    return EngineOptions(
        make_optimizer=make_optimizer,
        dtype=run.dtype,  # type: ignore[arg-type]
        grad_clip=run.grad_clip,
        world=world,
    )


def build_scheduler(run: TrainRun) -> Scheduler:
    """The noise scheduler; it checks its values here, before any weight is read."""
    return build(SCHEDULERS, run.scheduler or {})


def build_masks(run: TrainRun, where: str) -> FrameMasks | FrameConditions | None:
    """The frame masks of `mask_ratios`, in the form that the model takes.

    Raises ConfigError when it takes none, or a share is wrong.
    """
    if run.mask_ratios is None or run.model is None:
        return None
    mode = conditioning_mode(run.model, f"{where}: key 'mask_ratios'")
    try:
        return FrameConditions(run.mask_ratios) if mode == "latents" else FrameMasks(run.mask_ratios)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _batches(run: TrainRun, clips: ClipPlan, world: World, start_step: int) -> Iterator[Batch]:
    return broadcast_batches(
        lambda: iter(
            build_loader(
                clips.dataset,
                seed=run.seed,
                batch_size=run.batch_size,
                micro_batches=run.micro_batches,
                data_rank=world.data_rank,
                data_size=world.data_size,
                start_step=start_step,
                steps=run.steps,
                num_workers=run.num_workers,
                order=clips.order,
            )
        ),
        world,
    )


def _validation(run: TrainRun, world: World, task: Task, where: str) -> Callable[[], Iterator[Batch]] | None:
    """The same validation batches on any number of ranks; each rank takes an equal share of them."""
    if run.validation_dataset is None:
        return None
    dataset = build(DATASETS, run.validation_dataset)
    require_fixed_size(dataset, f"{where}: key 'validation_dataset'")
    drop_empty_captions(dataset, run.text_encoder)
    check_joint(run, dataset, getattr(task, "scheduler", None), where, "validation_dataset")
    check_strides(task.autoencoder, dataset, where, "validation_dataset")
    require_frame_counts(task.autoencoder, [("key 'validation_dataset.num_frames'", dataset.num_frames)], where)
    dataset = stored_clips(run, dataset, [(dataset.num_frames, *dataset.image_size)], where)
    count = -(-run.validation_batches // world.data_size) * world.data_size

    def load() -> Iterator[Batch]:
        return iter(
            build_loader(
                dataset,
                seed=key_seed(run.seed, "validation"),
                batch_size=run.batch_size,
                micro_batches=count,
                data_rank=world.data_rank,
                data_size=world.data_size,
                start_step=0,
                steps=1,
                num_workers=0,
            )
        )

    return lambda: broadcast_batches(load, world)


def _build_task(
    run: TrainRun, world: World, clips: ClipPlan, masks: FrameMasks | FrameConditions | None, where: str
) -> Task:
    if run.task == "autoencoder":
        return _autoencoder_task(run, world, clips, where)
    return build_diffusion_task(run, world, clips, masks, where)


def _autoencoder_task(run: TrainRun, world: World, clips: ClipPlan, where: str) -> AutoencoderTask:
    device = torch.device(world.device)
    check_joint(run, clips.dataset, None, where)
    config = resolve_part(run.vae)
    vae = build_autoencoder(config, seed=run.seed)
    require_frame_counts(vae, clips.lengths, where)
    check_latents(clips, vae, None, where)
    vae.load()  # its own from_pretrained or those of its parts; without any, nothing
    return AutoencoderTask(
        trained=vae.to(device),
        seed=run.seed,
        reconstruction=run.reconstruction_loss,
        kl_weight=run.kl_weight,
        device=device,
        perceptual=None if run.perceptual is None else build(PERCEPTUAL, run.perceptual).load().to(device),
        perceptual_weight=run.perceptual_weight,
        reconstructs_latents=_reconstructs_latents(run, vae, where),
        identity_weight=run.identity_weight,
        lengths=clip_lengths(run, vae, clips.num_frames, where),
        validation_distance=_validation_distance(run, device, where),
        statistics_clips=lambda: _statistics_clips(run, clips),
        discriminator=build_discriminator_trainer(run, world, vae, where),
    )


def _reconstructs_latents(run: TrainRun, vae: Autoencoder, where: str) -> bool:
    """Raises ConfigError where the autoencoder has no spatial latents to reconstruct."""
    if run.reconstruct == "pixels":
        return False
    if "reconstruct_latents" not in inspect.signature(vae.forward).parameters:
        raise ConfigError(
            f"{where}: key 'reconstruct': found 'latents' for {run.vae['type']}, which has no spatial part with latents of its "
            "own; allowed: 'pixels', or vae.type='OpenSoraVAE_V1_2'; change one of them"
        )
    return True


def _validation_distance(run: TrainRun, device: torch.device, where: str) -> tuple[str, Distance] | None:
    """The name of `validation_perceptual` in the metrics and the distance; None without one.

    Raises ConfigError where validation clips are too small for it.
    """
    if run.validation_perceptual is None:
        return None
    kind = run.validation_perceptual["type"]
    distance = build(PERCEPTUAL, run.validation_perceptual).load().to(device)
    if "image_size" in (run.validation_dataset or {}):
        frame = torch.zeros(1, 3, *run.validation_dataset["image_size"], device=device)  # type: ignore[index]
        try:
            distance(frame, frame)
        except ShapeError as error:
            raise ConfigError(f"{where}: key 'validation_perceptual': {error}") from None
    return NAMES.get(kind, kind.lower()), distance


def _statistics_clips(run: TrainRun, clips: ClipPlan) -> Iterator[Batch]:
    """The same clips at every save and on any number of ranks; bad rows are skipped as in training."""
    return single_clip_batches(clips, seed=key_seed(run.seed, "latent statistics"), micro_batches=STATISTICS_CLIPS)


def build_diffusion_task(
    run: TrainRun, world: World, clips: ClipPlan, masks: FrameMasks | FrameConditions | None, where: str
) -> DiffusionTask:
    dataset = clips.dataset
    scheduler = build_scheduler(run)
    check_joint(run, dataset, scheduler, where)
    vae = resolve_part(run.vae)
    parts: Components = assemble(
        resolve_part(run.model or {}),
        vae,
        run.text_encoder or {},
        num_frames=clips.num_frames,
        image_size=clips.image_size,
        seed=run.seed,
        text_dtype=DTYPES[run.dtype],
        stored_vae=stored_latents(dataset),
        stored_text=stored_texts(run, where),
        lengths=clips.lengths,
    )
    record = {
        "vae": vae,
        "text_encoder": run.text_encoder,
        "scheduler": run.scheduler,
        "num_frames": clips.num_frames,
        "image_size": list(clips.image_size),
        "fps": dataset.fps,
        "dtype": run.dtype,
        "seed": run.seed,
        "config_digest": digest(as_dict(run)),
        "opensora": __version__,
    }
    record["origin"] = Origin.here(run.run_dir, record).record()
    check_strides(parts.vae, dataset, where)
    check_latents(clips, parts.vae, parts.model, where)
    if world.is_main:
        warn_of_long_captions(dataset, parts.text_encoder)
    _log_size(parts.model)
    return DiffusionTask(
        trained=parts.model.to(world.device),
        codec=distributed_codec(
            parts.vae, parts.text_encoder, world, DTYPES[run.dtype], run.text_encoder_parallel, where
        ),
        scheduler=scheduler,
        seed=run.seed,
        model_config=parts.model_config,
        run_record=record,
        masks=masks,
        validation_levels=run.validation_levels,
    )


def _log_size(model: nn.Module) -> None:
    logger().info("%s: %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
