"""Every run-level key of a config: its type, default, unit and purpose. No other file holds a default of a run.

docs/config.md is the table of these fields; `opensora keys > docs/config.md` writes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from opensora import registry
from opensora.autoencoder_keys import check_autoencoder_keys
from opensora.errors import ConfigError
from opensora.fields import arguments_of, component, components, key
from opensora.ranges import BELOW_1, NOT_NEGATIVE, POSITIVE, SECONDS, SHARE, Range

Component = dict[str, Any]
Where = Callable[[str], str]  # key -> the file and line, or the command line, that has the last word on it
Precision = Literal["auto", "bf16", "fp32"]  # the dtype that a model computes with; DTYPES in types.py has torch's

# Arguments that the run passes to the model; a config need not repeat them, and must agree where it does.
MODEL_ARGUMENTS = ("input_size", "in_channels", "caption_channels", "model_max_length")


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """The keys of a training config: what is trained, on what data, how, and what is kept."""

    # the networks
    task: Literal["diffusion", "autoencoder"] = key(
        "diffusion", "train a denoiser on latents, or the autoencoder itself"
    )
    vae: Component = component(registry.VAES, doc="the autoencoder: trained by task autoencoder, frozen otherwise")
    model: Component | None = component(registry.MODELS, None, "the denoiser", supplied=MODEL_ARGUMENTS)
    text_encoder: Component | None = component(registry.TEXT_ENCODERS, None, "the frozen text encoder")
    scheduler: Component | None = component(registry.SCHEDULERS, None, "noise, loss and sampler")
    load: str | None = key(
        None, "start from these weights: a run folder, a checkpoint, a weights folder or file", path=True
    )

    # the data
    dataset: Component = component(registry.DATASETS, doc="the clips")
    batch_size: int = key(1, "one micro-batch; with bucket_config of validation only", unit="clips", range=POSITIVE)
    micro_batches: int = key(
        1, "one optimizer step; data ranks share them and accumulate the rest", unit="micro-batches", range=POSITIVE
    )
    bucket_config: dict[str, dict[Any, Any]] | None = key(
        None, "resolution -> frames -> (share that stays, batch size); docs/training.md"
    )
    image_ratio: float | None = key(
        None,
        "optimizer steps that take images: buckets of one frame, or of task autoencoder first frames; None: as the data falls",
        unit="share, 0 to 1",
        range=SHARE,
    )
    warmup_buckets: bool = key(False, "run the largest bucket once, without an update, before the first step")
    num_workers: int = key(
        0,
        "loader processes of a rank; 0 loads in the training process",
        unit="processes",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )
    mask_ratios: dict[str, float] | None = key(
        None, "kind -> clips whose frames of that kind are conditions; docs/training.md", unit="share, 0 to 1"
    )
    load_video_features: str | None = key(
        None, "folder of latents made by tools.features.encode; None: the autoencoder runs", resume_safe=True, path=True
    )
    load_text_features: str | None = key(
        None, "folder of token states made by it; None: the text encoder runs", resume_safe=True, path=True
    )
    max_bad_rows: int = key(
        100,
        "distinct manifest rows that may fail before the run stops",
        unit="rows",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )

    # the optimization
    steps: int = key(doc="length of the whole run", unit="optimizer steps", resume_safe=True, range=POSITIVE)
    seed: int = key(42, "key of every random draw")
    optimizer: Component = component(
        registry.OPTIMIZERS, {"type": "AdamW", "lr": 1e-4}, "the optimizer", supplied=("params",)
    )
    lr_scheduler: Component = component(
        registry.LR_SCHEDULERS, {"type": "constant"}, "the learning rate over time", supplied=("steps", "warmup_steps")
    )
    warmup_steps: int = key(0, "linear warm-up of the learning rate from 0", unit="optimizer steps", range=NOT_NEGATIVE)
    lr_groups: dict[str, float] = key(
        {}, "part of a name -> learning rate of the weights with that part in their names", range=NOT_NEGATIVE
    )
    grad_clip: float = key(1.0, "largest global gradient norm; 0: no clipping", range=NOT_NEGATIVE)
    ema_decay: float | None = key(
        0.9999, "average of the weights, in fp32; None: no average", unit="per optimizer step", range=BELOW_1
    )
    grad_checkpoint: bool = key(
        False, "recompute block activations in backward: less memory, about a third more time", resume_safe=True
    )
    dtype: Precision = key("auto", "auto: bf16 where the device has units for it, otherwise fp32")
    tf32: bool = key(
        False, "fp32 products and convolutions of a GPU (Ascend: HF32) may round their factors: faster, 1e-3"
    )
    deterministic: bool = key(False, "the same bits each time on a GPU or NPU too; slower", resume_safe=True)
    plugin: str = key("zero2", "how ranks share the training state; docs/parallelism.md")
    plugin_config: Component = arguments_of(registry.PLUGINS, "plugin", "arguments of the plugin")
    sp_size: int | None = key(
        None,
        "ranks that share the tokens of each sample; None: 1, with a -seq plugin a machine's",
        unit="ranks",
        resume_safe=True,
        range=POSITIVE,
    )
    sp_mode: Literal["dsp", "ulysses"] = key(
        "dsp", "attention exchanges frames and patches, or heads and tokens", resume_safe=True
    )
    text_encoder_parallel: Literal["shard", "tensor"] | None = key(
        None, "share the text encoder among ranks; None: a whole one on each; docs/parallelism.md", resume_safe=True
    )
    timeout_seconds: int = key(
        600, "a collective that waits longer ends the job", unit="seconds", resume_safe=True, range=SECONDS
    )

    # anomalies
    on_nan: Literal["stop", "skip"] = key(
        "stop", "action at a loss or gradient norm that is not finite", resume_safe=True
    )
    spike_factor: float | None = key(
        None,
        "a loss or gradient norm above this multiple of its median is a spike; None: never",
        resume_safe=True,
        range=Range(1, above_low=True),
    )
    spike_window: int = key(
        100, "steps in that median; no spike until it is full", unit="optimizer steps", resume_safe=True, range=POSITIVE
    )
    on_spike: Literal["stop", "skip"] = key("skip", "action at a spike", resume_safe=True)
    max_skips: int = key(
        10,
        "stop after more than this many consecutive skipped steps",
        unit="optimizer steps",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )

    # task autoencoder only
    tail_init: str | None = key(
        None,
        "start CausalVAEModel from this image autoencoder: a run folder, a folder, a file or a hub id; docs/training.md",
        path=True,
    )
    principal_start: bool = key(
        False, "start CausalVAEModel, in a layout of shuffles, as principal components of the clips; docs/training.md"
    )
    reset_mix_factor: float | None = key(
        None, "start with this mix_factor in every mixing of a fixed and a learned branch; None: as it is"
    )
    reconstruct: Literal["pixels", "latents"] = key(
        "pixels", "latents: those of the spatial part of OpenSoraVAE_V1_2, which then stays as it is"
    )
    reconstruction_loss: Literal["l1", "l2"] = key("l1", "distance of pixels, or of those latents")
    identity_weight: float = key(
        0.0, "weight of that distance between the latent of a single frame and its spatial latent", range=NOT_NEGATIVE
    )
    min_frames: int | None = key(
        None,
        "each step cuts its clips to a length drawn from this one to dataset.num_frames; None: whole clips",
        unit="frames",
        range=POSITIVE,
    )
    kl_weight: float = key(
        1e-6,
        "weight of the KL divergence summed over a clip's latents, next to a sum over its pixels",
        range=NOT_NEGATIVE,
    )
    perceptual: Component | None = component(registry.PERCEPTUAL, None, "a distance of frames to add to the loss")
    perceptual_weight: float = key(1.0, "weight of that distance, next to a mean over pixels", range=NOT_NEGATIVE)
    discriminator: Component | None = component(
        registry.DISCRIMINATORS, None, "the discriminator of the adversarial loss"
    )
    disc_loss: Literal["hinge", "vanilla"] = key("hinge", "loss of the discriminator")
    disc_start: int = key(1000, "the discriminator joins after these", unit="optimizer steps", range=NOT_NEGATIVE)
    disc_weight: float = key(0.5, "weight of the adversarial loss, times the adaptive weight", range=NOT_NEGATIVE)
    disc_optimizer: Component | None = component(
        registry.OPTIMIZERS, None, "the discriminator's optimizer; None: as `optimizer`", supplied=("params",)
    )

    validation_perceptual: Component | None = component(
        registry.PERCEPTUAL, None, "a distance of frames to measure in validation", resume_safe=True
    )

    # what is kept and shown
    run_dir: str = key(doc="folder of the run; the same folder again resumes it", resume_safe=True, path=True)
    save_every: int = key(
        1000,
        "between checkpoints, and at the end; 0: only at the end",
        unit="optimizer steps",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )
    background_save: bool = key(
        True, "write checkpoints while training goes on; needs host memory for a copy of the state", resume_safe=True
    )
    keep_last: int = key(3, "checkpoints that are kept", unit="checkpoints", resume_safe=True, range=POSITIVE)
    log_every: int = key(10, "between log lines", unit="optimizer steps", resume_safe=True, range=POSITIVE)
    validation_dataset: Component | None = component(
        registry.DATASETS, None, "the clips of validation; None: no validation", resume_safe=True
    )
    validate_every: int = key(
        0,
        "between validations, and at the end; 0: only at the end",
        unit="optimizer steps",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )
    validation_batches: int = key(
        8, "batches of batch_size clips in a validation", unit="batches", resume_safe=True, range=POSITIVE
    )
    validation_levels: int = key(
        10,
        "noise levels at which the loss of each of those clips is measured, spread evenly over the scale",
        unit="levels",
        resume_safe=True,
        range=POSITIVE,
    )
    preview_every: int = key(
        0,
        "between sample videos in run_dir/previews, and at the end; 0: none",
        unit="optimizer steps",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )
    preview_prompts: list[str] = key([], "prompts of those videos", resume_safe=True)
    preview_steps: int | None = key(
        None,
        "denoising steps of those videos; None: the scheduler's own",
        unit="denoising steps",
        resume_safe=True,
        range=POSITIVE,
    )
    preview_ema: bool = key(True, "use the averaged weights for them, where there is an average", resume_safe=True)
    wandb: bool = key(False, "log to Weights & Biases as well", resume_safe=True)
    profile_steps: int = key(
        0,
        "steps, after the first of a start, whose profiler trace is written to run_dir/profile",
        unit="optimizer steps",
        resume_safe=True,
        range=NOT_NEGATIVE,
    )

    def check(self, where: Where) -> None:
        """Raise ConfigError where values do not make sense together; imports no component."""
        self._check_buckets(where)
        if bool(self.preview_every) != bool(self.preview_prompts):
            raise ConfigError(
                f"{where('preview_every')}: keys 'preview_every', 'preview_prompts': found {self.preview_every} and "
                f"{len(self.preview_prompts)} prompts; allowed: both or neither; set the other one as well"
            )
        self._check_stored(where)
        trains_autoencoder = self.task == "autoencoder"
        other = "diffusion" if trains_autoencoder else "autoencoder"
        of_diffusion = ["preview_every", "text_encoder_parallel", "mask_ratios"]
        of_autoencoder = ["perceptual", "discriminator", "tail_init", "reset_mix_factor", "validation_perceptual"]
        of_autoencoder += ["identity_weight", "min_frames", "principal_start"]
        for name in of_diffusion if trains_autoencoder else of_autoencoder:
            if getattr(self, name) not in (None, 0):
                raise ConfigError(f"{where(name)}: key '{name}': belongs to task '{other}'; remove the key")
        check_autoencoder_keys(self, where)
        for name in ("model", "text_encoder", "scheduler") if self.task == "diffusion" else ():
            if getattr(self, name) is None:
                raise ConfigError(
                    f"{where(name)}: key '{name}': missing; task 'diffusion' needs it; add {name} = dict(type=...)"
                )

    def check_plugin(self, where: Where) -> None:
        """Raise ConfigError for a plugin that does not train the task. The plugin's name is a registered one."""
        plugins: dict[str, Any] = {
            name: registry.constructor(registry.PLUGINS, name) for name in registry.names(registry.PLUGINS)
        }
        refused = {name: reason for name, each in plugins.items() if (reason := each.refused_tasks.get(self.task))}
        if self.plugin in refused:
            # An autoencoder has no tokens that the ranks of a '-seq' plugin could share.
            unfit = {name for name, each in plugins.items() if self.task == "autoencoder" and each.shares_tokens}
            allowed = ", ".join(name for name in plugins if name not in refused and name not in unfit)
            raise ConfigError(
                f"{where('plugin')}: key 'plugin': found {self.plugin!r} for task {self.task!r}, which it cannot train: "
                f"{refused[self.plugin]}; allowed: {allowed}; choose one of them"
            )

    def _check_stored(self, where: Where) -> None:
        for name in ("load_video_features", "load_text_features"):
            if self.task == "autoencoder" and getattr(self, name):
                raise ConfigError(
                    f"{where(name)}: key '{name}': stored features belong to task 'diffusion'; remove the key"
                )
        if self.preview_every and self.load_video_features:
            raise ConfigError(
                f"{where('preview_every')}: keys 'preview_every', 'load_video_features': previews need the autoencoder, "
                "which is not loaded with stored latents; remove one of the two"
            )
        if self.text_encoder_parallel is not None and self.load_text_features:
            raise ConfigError(
                f"{where('text_encoder_parallel')}: keys 'text_encoder_parallel', 'load_text_features': with stored "
                "features there is no text encoder to share; remove one of the two"
            )

    def _check_buckets(self, where: Where) -> None:
        for name in ("image_ratio", "warmup_buckets"):
            if name == "image_ratio" and self.task == "autoencoder":
                continue
            if getattr(self, name) not in (None, False) and self.bucket_config is None:
                raise ConfigError(
                    f"{where(name)}: key '{name}': belongs to bucket_config; set that as well, or remove the key"
                )
        if self.bucket_config is not None and self.seed < 0:
            raise ConfigError(f"{where('seed')}: key 'seed': found {self.seed}; allowed with bucket_config: 0 or more")


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """The keys of a sampling config; a checkpoint's record of its networks and sizes is the default."""

    # the networks
    load: str | None = key(None, "run folder, checkpoint or weights folder of the denoiser", path=True)
    ema: bool = key(True, "use the averaged weights where the checkpoint has them")
    model: Component | None = component(registry.MODELS, None, "the denoiser", supplied=MODEL_ARGUMENTS, partial=True)
    vae: Component | None = component(registry.VAES, None, "the autoencoder", partial=True)
    text_encoder: Component | None = component(registry.TEXT_ENCODERS, None, "the text encoder", partial=True)
    scheduler: Component | None = component(registry.SCHEDULERS, None, "the sampler", partial=True)

    # the prompts and the videos
    prompt: list[str] = key([], "the prompts")
    prompt_path: str | None = key(
        None, "text file with a prompt per line, or a CSV or Parquet with a column `text`", path=True
    )
    negative_prompt: str = key("", "the unconditional text; empty: the null caption the model was trained with")
    num_sample: int = key(1, "videos of each prompt", unit="videos", range=POSITIVE)
    num_frames: int | str | None = key(
        None, 'length, or seconds such as "4s"; None: as trained', unit="frames", range=POSITIVE
    )
    image_size: Sequence[int] | None = key(None, "height and width; None: as trained", unit="pixels", range=POSITIVE)
    resolution: str | int | None = key(
        None, "in place of image_size: 144p, 240p, 360p, 480p, 720p, 1080p, 2k, 4k, 256, 512, 1024; docs/sampling.md"
    )
    aspect_ratio: str | None = key(
        None, 'width:height such as "16:9", or with marked sides "h9:w16"; None: as trained', unit="ratio"
    )
    fps: float | None = key(None, "rate of the video; None: as trained", unit="frames per second", range=POSITIVE)
    frame_interval: int = key(1, "every n-th frame of a video at `fps` is made", unit="frames", range=POSITIVE)
    save_fps: float | None = key(
        None,
        "rate of the file; None: fps / frame_interval, which plays at true speed",
        unit="frames per second",
        range=POSITIVE,
    )
    save_format: Literal["mp4", "hevc", "webm", "av1", "gif", "png"] = key(
        "mp4", "H.264 in mp4, HEVC in mp4, VP9 or AV1 in webm, GIF, or a folder of pngs"
    )
    watermark: str = key("", "text over the lower right corner")
    grid: bool = key(False, "write all videos of the run side by side as one more file")
    refine: Component | None = component(
        registry.REFINERS, None, "rewrites every prompt in more words before it is sampled; docs/sampling.md"
    )
    safety_filter: Component | None = component(
        registry.SAFETY_FILTERS, None, "refuses prompts before they are sampled, and videos before they are written"
    )
    aes: float | None = key(None, "aesthetic score added to the prompts, in Open-Sora 1.2's words", unit="1 to 10")
    flow: float | None = key(None, "motion score added to the prompts")
    camera_motion: str | None = key(None, 'camera motion added to the prompts, for example "pan left"')

    # conditions on frames
    reference_path: str | list[str] | None = key(
        None, 'images or videos to build on, joined by ";"; a list: one entry per prompt'
    )
    mask_strategy: str | int | tuple[int | float, ...] | list[str] = key(
        "", "placement of the references' latent frames; docs/sampling.md"
    )
    first_frame: str | None = key(None, "picture, or clip whose first frame, the video begins with", path=True)
    last_frame: str | None = key(None, "picture, or clip whose first frame, the video ends with", path=True)
    extend: str | None = key(None, "clip whose end the video begins with", path=True)
    backward: bool = key(False, "the video ends with the beginning of `extend`, and shows what came before")
    connect: Sequence[str] | None = key(None, "two pictures or clips: the video leads from the first to the second")
    edit: str | None = key(None, "clip that is made anew, starting from it with noise", path=True)
    strength: float | None = key(
        None, "of an edit: how much noise; None: 0.5", unit="above 0, up to 1", range=Range(0, 1, above_low=True)
    )
    keep: str | None = key(
        None, 'of an edit: frames that stay, as ranges "0-8,24-32" counted from 0', unit="frames of the clip"
    )
    align: int | None = key(
        None,
        "round placements to multiples of it (Open-Sora 1.2: 5); None: no rounding",
        unit="latent frames",
        range=POSITIVE,
    )
    loop: int = key(
        1, "clips of num_frames, each continuing the one before, joined to one video", unit="clips", range=POSITIVE
    )
    condition_frame_length: int | None = key(
        None,
        "latent frames of a clip with which the next one begins; None: 5, or half of a shorter clip",
        unit="latent frames",
        range=POSITIVE,
    )
    condition_frame_edit: float = key(0.0, "0 keeps those frames, 1 generates them anew", unit="0 to 1", range=SHARE)

    # shortcuts for speed; docs/sampling.md
    guidance_interval: Sequence[float] | None = key(
        None,
        "lowest and highest noise level at which guidance acts, half the work elsewhere; None: at all",
        unit="0 (data) to 1 (noise)",
        range=SHARE,
    )
    null_every: int = key(
        1, "calls for which one answer of the model without the caption serves", unit="model calls", range=POSITIVE
    )
    cache: Component | None = component(registry.CACHES, None, "reuse of blocks or attention from step to step")

    # memory; docs/sampling.md
    model_cpu_offload: bool = key(
        False, "text encoder, denoiser and autoencoder wait on the host, and each is on the device for its stage only"
    )
    caption_cache: str | None = key(
        None, "folder of encoded captions: a run whose captions are all there loads no text encoder", path=True
    )

    max_memory: str | int | None = key(
        None,
        'at most this much of the device: "12GB", "11.5GiB"; chooses model_cpu_offload and vae.use_tiling',
        unit="bytes",
    )

    # the run
    seed: int = key(42, "key of every random draw")
    sp_size: int = key(
        1, "ranks that make one video together: they share its tokens and its decoding", unit="ranks", range=POSITIVE
    )
    sp_mode: Literal["dsp", "ulysses"] = key("dsp", "attention exchanges frames and patches, or heads and tokens")
    dtype: Precision = key("auto", "auto: bf16 where the device has units for it, otherwise fp32")
    tf32: bool = key(
        False, "fp32 products and convolutions of a GPU (Ascend: HF32) may round their factors: faster, 1e-3"
    )
    deterministic: bool = key(False, "the same bits each time on a GPU or NPU too; slower")
    timeout_seconds: int = key(
        3600,
        "a rank that makes no progress for longer while others wait for it ends the job",
        unit="seconds",
        range=SECONDS,
    )
    save_dir: str = key("outputs/samples", "folder of the videos", path=True)


@dataclass(frozen=True)
class EvaluateRun:
    """The keys of an evaluation config, for `opensora evaluate CONFIG`."""

    metrics: dict[str, Component] = components(registry.METRICS, "what is measured, each under a name for the report")
    videos: str | None = key(None, "folder of videos, best with the json that `opensora sample` writes", path=True)
    references: str | None = key(
        None, "folder of videos, or manifest of clips, to compare with: of the same names, or as a set", path=True
    )
    compare: str | None = key(None, "a second folder of videos, shown next to the first", path=True)
    max_videos: int | None = key(None, "of each folder, the first by name; None: all", unit="videos", range=POSITIVE)
    report_dir: str = key("outputs/evaluation", "folder of report.html and metrics.json", path=True)


Run = TrainRun | SampleRun | EvaluateRun


def keys_of(schema: type[Run]) -> list[str]:
    return [f.name for f in fields(schema)]
