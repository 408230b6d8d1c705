"""Every run-level key of a config: its type, its default and its unit. One file, no hidden defaults elsewhere.

A `component(...)` key holds `dict(type=NAME, **arguments)`; its arguments are checked against the constructor that
NAME is registered with, minus those the run supplies itself (`given`).
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from mmengine.registry import Registry

from opensora import registry
from opensora.errors import ConfigError
from opensora.types import Precision

Component = dict[str, Any]


def resume_safe(default: Any = MISSING) -> Any:
    """A field that may change when a run resumes: nothing learned before depends on it, so no warning is logged."""
    metadata = {"resume_safe": True}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def component(
    of: Registry, default: Any = MISSING, given: Sequence[str] = (), partial: bool = False, resume_safe: bool = False
) -> Any:
    """A field holding one registered component; a missing default makes the key required.

    partial: the config may leave out `type` and change single arguments of what a checkpoint recorded.
    resume_safe: as the field of that name.
    """
    metadata = {"registry": of, "given": tuple(given), "partial": partial, "resume_safe": resume_safe}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def arguments_of(of: Registry, named_by: str) -> Any:
    """A field holding the arguments of the component that another key names, as `plugin_config` does for `plugin`."""
    return field(default_factory=dict, metadata={"arguments_registry": of, "named_by": named_by})


# Keys of the projects people come from, and what they are called here.
FOREIGN_KEYS = {
    "ckpt_every": "save_every",
    "save_interval": "save_every",
    "checkpointing_steps": "save_every",
    "outputs": "run_dir",
    "output_dir": "run_dir",
    "log_interval": "log_every",
    "epochs": "steps",
    "max_train_steps": "steps",
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "adam_eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "gradient_accumulation_steps": "micro_batches",
    "accumulation_steps": "micro_batches",
    "gradient_checkpointing": "grad_checkpoint",
    "max_grad_norm": "grad_clip",
    "mixed_precision": "dtype",
    "train_batch_size": "batch_size",
    "resume_from_checkpoint": "run_dir (the same command resumes what it finds there)",
    "resume": "run_dir (the same command resumes what it finds there)",
    "data_path": "dataset.data_path",
    "num_frames": "dataset.num_frames",
    "image_size": "dataset.image_size",
    "frame_interval": "dataset.frame_interval",
    "wandb_project": "wandb",
    "total_limit": "keep_last",
    "checkpoints_total_limit": "keep_last",
    "sequence_parallel_size": "sp_size",
    "enable_sequence_parallelism": "sp_size (above 1 switches it on)",
}

# Names of the field that this version answers honestly: key and name -> why not, and what instead.
UNSUPPORTED = {
    "plugin gemini": "ColossalAI's Gemini trains wrongly on the CPU, and this version has not been tried with it on "
    "devices, so it offers none; use 'fsdp', or 'zero2' with plugin_config=dict(cpu_offload=True)",
}

# What the run tells a component; a config need not repeat it, and must agree where it does.
MODEL_GIVEN = ("input_size", "in_channels", "caption_channels", "model_max_length")


def _positive(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{where}: key '{name}': found {value}; allowed: a number above 0")


def _not_negative(where: str, **values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{where}: key '{name}': found {value}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What `opensora.cli.train` reads. The order is: what is trained, on what, how, and what is kept."""

    # what is trained
    task: Literal["diffusion", "autoencoder"] = "diffusion"
    vae: Component = component(registry.VAES)  # trained by task "autoencoder", frozen in task "diffusion"
    model: Component | None = component(registry.MODELS, None, given=MODEL_GIVEN)
    text_encoder: Component | None = component(registry.TEXT_ENCODERS, None)
    scheduler: Component | None = component(registry.SCHEDULERS, None)
    load: str | None = None  # start from these weights: a run folder, a checkpoint, a weights folder or file

    # on what
    dataset: Component = component(registry.DATASETS)
    batch_size: int = 1  # clips in one micro-batch; with bucket_config of validation only
    micro_batches: int = 1  # micro-batches in one optimizer step, shared by the data ranks; the rest is accumulated
    bucket_config: dict[str, dict[Any, Any]] | None = (
        None  # resolution -> frames -> (chance, batch_size); docs/training.md
    )
    image_ratio: float | None = (
        None  # share of the optimizer steps that buckets of one frame make; None = as the data falls
    )
    warmup_buckets: bool = False  # run the largest bucket once, without an update, before the first step
    num_workers: int = resume_safe(0)  # loader processes per rank; 0 loads in the training process
    mask_ratios: dict[str, float] | None = None  # kind -> share of clips with given frames; see datasets/frame_masks.py
    # folder of latents made by tools.features.encode; None = the autoencoder runs
    load_video_features: str | None = resume_safe(None)
    # folder of token states made by it; None = the text encoder runs
    load_text_features: str | None = resume_safe(None)
    max_bad_rows: int = resume_safe(100)  # distinct manifest rows that may fail before the run stops

    # how
    steps: int = resume_safe()  # optimizer steps of the whole run
    seed: int = 42
    optimizer: Component = component(registry.OPTIMIZERS, {"type": "AdamW", "lr": 1e-4}, given=("params",))
    lr_scheduler: Component = component(registry.LR_SCHEDULERS, {"type": "constant"}, given=("steps", "warmup_steps"))
    warmup_steps: int = 0  # optimizer steps of linear warm-up from 0
    grad_clip: float = 1.0  # largest global gradient norm; 0 = no clipping
    ema_decay: float | None = 0.9999  # per optimizer step, kept in fp32; None = no average
    # recompute block activations in backward: less memory, about a third more time
    grad_checkpoint: bool = resume_safe(False)
    dtype: Precision = "auto"  # auto: bf16 where the device has units for it, otherwise fp32
    plugin: str = "zero2"
    plugin_config: Component = arguments_of(registry.PLUGINS, named_by="plugin")
    # ranks that share the tokens of each sample; None: 1, with a '-seq' plugin a machine's
    sp_size: int | None = resume_safe(None)
    # what attention exchanges: frames and patches, or heads and tokens
    sp_mode: Literal["dsp", "ulysses"] = resume_safe("dsp")
    # None: a whole one on each rank; see docs/parallelism.md
    text_encoder_parallel: Literal["shard", "tensor"] | None = resume_safe(None)
    timeout_seconds: int = resume_safe(600)  # a collective that waits longer ends the job

    # what may go wrong
    on_nan: Literal["stop", "skip"] = resume_safe("stop")  # at a loss or gradient norm that is not finite
    # a loss or gradient norm above this many times its median is a spike; None = never
    spike_factor: float | None = resume_safe(None)
    # accepted steps in that running median; no spike detection until it is full
    spike_window: int = resume_safe(100)
    on_spike: Literal["stop", "skip"] = resume_safe("skip")
    max_skips: int = resume_safe(10)  # consecutive skipped optimizer steps; one more ends the run

    # autoencoder only
    reconstruction_loss: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-6  # of the KL divergence summed over a clip's latents, next to a sum over its pixels
    perceptual: Component | None = component(registry.PERCEPTUAL, None)  # a distance of frames to add to the loss
    perceptual_weight: float = 1.0  # of that distance, next to a mean over pixels
    discriminator: Component | None = component(registry.DISCRIMINATORS, None)  # what to train against
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    disc_start: int = 1000  # optimizer steps before the discriminator joins
    disc_weight: float = 0.5  # of its judgement, beside the weight that balances it with the reconstruction
    disc_optimizer: Component | None = component(registry.OPTIMIZERS, None, given=("params",))  # None = as `optimizer`

    # what is kept and shown
    run_dir: str = resume_safe()
    save_every: int = resume_safe(1000)  # optimizer steps; 0 = only at the end
    # write checkpoints while training goes on; needs host memory for a copy of the state
    background_save: bool = resume_safe(True)
    keep_last: int = resume_safe(3)  # checkpoints
    log_every: int = resume_safe(10)  # optimizer steps
    validation_dataset: Component | None = component(registry.DATASETS, None, resume_safe=True)
    validate_every: int = resume_safe(0)  # optimizer steps; 0 = only at the end
    validation_batches: int = resume_safe(8)  # batches of batch_size clips
    # noise levels at which the loss of each of those clips is measured, spread evenly over the scale
    validation_levels: int = resume_safe(10)
    # optimizer steps between sample videos in run_dir/previews, and at the end; 0 = none
    preview_every: int = resume_safe(0)
    preview_prompts: list[str] = resume_safe([])
    preview_steps: int | None = resume_safe(None)  # denoising steps; None = the scheduler's own
    preview_ema: bool = resume_safe(True)  # with the averaged weights, where there are some
    wandb: bool = resume_safe(False)
    # optimizer steps, after the first of a start, whose profiler trace is kept in run_dir/profile
    profile_steps: int = resume_safe(0)

    def check(self, where: str) -> None:
        """Raise ConfigError where values do not make sense together."""
        _positive(where, steps=self.steps, batch_size=self.batch_size, micro_batches=self.micro_batches)
        _positive(where, log_every=self.log_every, keep_last=self.keep_last, timeout_seconds=self.timeout_seconds)
        _positive(where, validation_batches=self.validation_batches, sp_size=self.sp_size)
        _not_negative(where, save_every=self.save_every, warmup_steps=self.warmup_steps, grad_clip=self.grad_clip)
        _not_negative(where, num_workers=self.num_workers, max_bad_rows=self.max_bad_rows, kl_weight=self.kl_weight)
        _not_negative(where, validate_every=self.validate_every, perceptual_weight=self.perceptual_weight)
        _not_negative(where, disc_start=self.disc_start, disc_weight=self.disc_weight)
        _not_negative(where, profile_steps=self.profile_steps)
        _positive(where, spike_window=self.spike_window, validation_levels=self.validation_levels)
        _positive(where, preview_steps=self.preview_steps)
        _not_negative(where, max_skips=self.max_skips, preview_every=self.preview_every)
        self._check_buckets(where)
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ConfigError(f"{where}: key 'spike_factor': found {self.spike_factor}; allowed: above 1, or None")
        if bool(self.preview_every) != bool(self.preview_prompts):
            raise ConfigError(
                f"{where}: keys 'preview_every', 'preview_prompts': found {self.preview_every} and "
                f"{len(self.preview_prompts)} prompts; allowed: both or neither; set the other one as well"
            )
        if self.task == "autoencoder" and self.preview_every:
            raise ConfigError(f"{where}: key 'preview_every': belongs to task 'diffusion'; remove the key")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"{where}: key 'ema_decay': found {self.ema_decay}; allowed: from 0 to below 1, or None")
        if self.task == "autoencoder" and self.plugin == "fsdp":
            raise ConfigError(
                f"{where}: key 'plugin': found 'fsdp' for task 'autoencoder', whose parts are asked one by one while fsdp "
                "gathers weights for a whole forward only; allowed: ddp, zero1, zero2; choose one of them"
            )
        if self.task == "autoencoder" and self.text_encoder_parallel is not None:
            raise ConfigError(f"{where}: key 'text_encoder_parallel': belongs to task 'diffusion'; remove the key")
        if self.task == "autoencoder" and self.mask_ratios is not None:
            raise ConfigError(f"{where}: key 'mask_ratios': given frames belong to task 'diffusion'; remove the key")
        self._check_stored(where)
        if self.task == "diffusion":
            for name in ("perceptual", "discriminator"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{where}: key '{name}': belongs to task 'autoencoder'; remove the key")
            for name in ("model", "text_encoder", "scheduler"):
                if getattr(self, name) is None:
                    raise ConfigError(
                        f"{where}: key '{name}': missing; task 'diffusion' needs it; add {name} = dict(type=...)"
                    )

    def _check_stored(self, where: str) -> None:
        if self.task == "autoencoder" and (self.load_video_features or self.load_text_features):
            raise ConfigError(
                f"{where}: key 'load_video_features', 'load_text_features': stored features belong to task 'diffusion'; "
                "remove the key"
            )
        if self.preview_every and self.load_video_features:
            raise ConfigError(
                f"{where}: keys 'preview_every', 'load_video_features': previews need the autoencoder, which is not loaded "
                "beside stored latents; remove one of the two"
            )
        if self.text_encoder_parallel is not None and self.load_text_features:
            raise ConfigError(
                f"{where}: keys 'text_encoder_parallel', 'load_text_features': with stored features there is no text encoder "
                "to share; remove one of the two"
            )

    def _check_buckets(self, where: str) -> None:
        if self.image_ratio is not None and not 0 <= self.image_ratio <= 1:
            raise ConfigError(f"{where}: key 'image_ratio': found {self.image_ratio}; allowed: 0 to 1, or None")
        for name in ("image_ratio", "warmup_buckets"):
            if getattr(self, name) not in (None, False) and self.bucket_config is None:
                raise ConfigError(
                    f"{where}: key '{name}': belongs to bucket_config; set that as well, or remove the key"
                )
        if self.bucket_config is not None and self.seed < 0:
            raise ConfigError(f"{where}: key 'seed': found {self.seed}; allowed with bucket_config: 0 or more")


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """What `opensora sample` reads. What a checkpoint recorded (model, vae, text_encoder, scheduler, sizes) is the default."""

    load: str | None = None  # run folder, checkpoint or weights folder of the denoiser
    ema: bool = True  # take the averaged weights where the checkpoint has them
    model: Component | None = component(registry.MODELS, None, given=MODEL_GIVEN, partial=True)
    vae: Component | None = component(registry.VAES, None, partial=True)
    text_encoder: Component | None = component(registry.TEXT_ENCODERS, None, partial=True)
    scheduler: Component | None = component(registry.SCHEDULERS, None, partial=True)

    prompt: list[str] = field(default_factory=list)
    prompt_path: str | None = None  # text file with a prompt per line, or a CSV / Parquet with a column `text`
    negative_prompt: str = ""  # empty: the null caption the model was trained with
    num_sample: int = 1  # videos per prompt
    num_frames: int | None = None
    image_size: Sequence[int] | None = None  # height, width in pixels
    fps: float | None = None  # frames per second of the mp4
    aes: float | None = None  # aesthetic score that prompts ask for, in Open-Sora 1.2's words; 1 to 10
    flow: float | None = None  # motion score, likewise
    camera_motion: str | None = None  # for example "pan left"

    reference_path: str | list[str] | None = (
        None  # pictures or videos to build on, joined by ";"; a list: one per prompt
    )
    mask_strategy: str | int | tuple[int | float, ...] | list[str] = ""  # which latent frames of theirs go where
    align: int | None = None  # latent frames; places are moved to multiples of it (Open-Sora 1.2: 5)
    loop: int = 1  # clips of num_frames that are made one after the other and joined
    condition_frame_length: int = 5  # latent frames of a clip that the next one begins with
    condition_frame_edit: float = 0.0  # 0 keeps those frames, 1 makes them anew
    seed: int = 42
    sp_size: int = 1  # ranks that make one video together, sharing its tokens and the pieces it is decoded in
    sp_mode: Literal["dsp", "ulysses"] = "dsp"  # what attention exchanges: frames and patches, or heads and tokens
    dtype: Precision = "auto"  # auto: bf16 where the device has units for it, otherwise fp32
    timeout_seconds: int = 3600  # a rank that keeps others waiting so long and takes no step ends them all
    save_dir: str = "outputs/samples"

    def check(self, where: str) -> None:
        """Raise ConfigError where values do not make sense together."""
        _positive(where, num_sample=self.num_sample, num_frames=self.num_frames, fps=self.fps, align=self.align)
        _positive(where, loop=self.loop, condition_frame_length=self.condition_frame_length, sp_size=self.sp_size)
        _positive(where, timeout_seconds=self.timeout_seconds)
        if not 0 <= self.condition_frame_edit <= 1:
            raise ConfigError(
                f"{where}: key 'condition_frame_edit': found {self.condition_frame_edit}; allowed: 0 (keep) to 1 (new)"
            )
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) <= 0):
            raise ConfigError(f"{where}: key 'image_size': found {self.image_size}; allowed: (height, width) in pixels")


Run = TrainRun | SampleRun


def keys_of(schema: type[Run]) -> list[str]:
    return [f.name for f in fields(schema)]
