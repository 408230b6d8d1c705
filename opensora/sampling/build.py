"""From a sampling config to loaded parts; the checkpoint's record is the default for keys that the config leaves out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from opensora.config import check_component
from opensora.datasets.decode import probe
from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder, Denoiser, Scheduler, TextEncoder
from opensora.log import logger
from opensora.models.build import (
    build_autoencoder,
    build_denoiser,
    check_image_size,
    fill_model_config,
    inferred_model_args,
    load_autoencoder,
    pixel_steps,
)
from opensora.models.codec import Codec
from opensora.models.frame_conditioning import conditioning_mode
from opensora.models.frame_counts import require_frame_counts
from opensora.models.offload import HOST, Offload
from opensora.models.weights import CONFIG_FILE, load_weights, read_config, require_kind
from opensora.planning.sampling_memory import memory_size
from opensora.platforms import select
from opensora.registry import MODELS, SAFETY_FILTERS, SCHEDULERS, TEXT_ENCODERS, build, class_of
from opensora.run_paths import Origin, change_paths, run_of_weights
from opensora.sampling.clip_size import clip_size, warn_of_cut_size
from opensora.sampling.conditions import Conditions, references_of_prompts
from opensora.sampling.generate import Sampler
from opensora.sampling.mask_strategy import check_pastes, parse_strategy
from opensora.sampling.memory_fit import KEY as MEMORY_KEY
from opensora.sampling.memory_fit import MemoryFit
from opensora.sampling.metadata import GenerationSettings, generation_settings, hash_config, weights_id
from opensora.sampling.prompt_check import check_cleaning, warn_of_cut_prompts
from opensora.sampling.prompt_syntax import add_scores
from opensora.sampling.reference_frames import ReferenceKeys, is_edited_as_a_whole, require_whole_edits, warn_of_changes
from opensora.sampling.refiners.base import refine_on_main_rank
from opensora.sampling.requests import Prompt, collect_requests
from opensora.sampling.safety_filters.base import SafetyFilter, check_prompts
from opensora.sampling.shortcuts import Shortcuts, chosen, shortcuts_of
from opensora.sampling.size_words import check_words
from opensora.sampling.stored_captions import StoredCaptions, captions_of
from opensora.sampling.video_formats import check_encoder
from opensora.sampling.watermark import draw_watermark
from opensora.schema import SampleRun
from opensora.training.checkpoint import resolve_part, resolve_weights
from opensora.types import DTYPES, SampleRequest, VideoConditioning

T = TypeVar("T")
PARTS = ("model", "vae", "text_encoder", "scheduler")


@dataclass(frozen=True)
class SamplePlan:
    """A sampling run with every gap filled; nothing is loaded yet."""

    run: SampleRun
    parts: dict[str, dict[str, Any]]  # model, vae, text_encoder, scheduler
    weights: Path | None  # of the denoiser
    requests: list[SampleRequest]
    shortcuts: Shortcuts = Shortcuts()
    safety_filter: SafetyFilter | None = None


def plan_sampling(run: SampleRun, where: str) -> SamplePlan:
    """Fill the gaps from the checkpoint's record and read the prompts; ConfigError when something is still missing."""
    shortcuts = shortcuts_of(run)
    safety_filter = None if run.safety_filter is None else build(SAFETY_FILTERS, run.safety_filter)
    if run.max_memory is not None:
        memory_size(run.max_memory, f"{where}: {MEMORY_KEY}")
    weights = resolve_weights(run.load, ema=run.ema) if run.load is not None else None
    recorded: dict[str, Any] = {}
    absent: dict[str, str] = {}
    folder = weights if weights is None or weights.is_dir() else weights.parent
    if weights is not None and folder is not None and (folder / CONFIG_FILE).is_file():
        require_kind(weights, MODELS, f"{where}: key 'load'")
        config = read_config(folder)
        recorded, absent = _located(dict(config.pop("run", {})), folder)
        if "type" in config:  # a released folder's config.json names no type of ours: then the run's config must
            recorded["model"] = config
    parts = {name: _part(name, getattr(run, name), recorded.get(name), where, run) for name in PARTS}
    _require_present(parts, absent, f"{where}: load={run.load!r}")

    def value_of(name: str) -> Any:
        return _configured_or_recorded(getattr(run, name), recorded.get(name), name, where, run)

    @cache
    def vae() -> Autoencoder:
        with torch.device("meta"):  # its sizes are needed here, not its weights
            return build_autoencoder(parts["vae"])

    check_words(run)
    size = clip_size(run, value_of, vae, parts["model"])
    Conditions.of(run, where)

    def size_of(prompt: Prompt) -> tuple[int, int, int]:
        words = replace(run, resolution=prompt.resolution, aspect_ratio=prompt.aspect_ratio, image_size=None)
        check_words(words)
        values = {"num_frames": prompt.num_frames or size.num_frames, "image_size": size.image_size}
        own = clip_size(words, (values | {"fps": prompt.fps or size.fps}).__getitem__, vae, parts["model"])
        return own.num_frames, own.image_size[0], own.image_size[1]

    def latent_frames(num_frames: int) -> int:
        return vae().latent_size((num_frames, size.image_size[0], size.image_size[1]))[0]

    requests = collect_requests(
        run.prompt,
        run.prompt_path,
        num_frames=size.num_frames,
        image_size=size.image_size,
        fps=size.fps,
        frame_interval=run.frame_interval,
        save_fps=run.save_fps,
        save_format=run.save_format,
        watermark=run.watermark,
        seed=run.seed,
        negative_prompt=run.negative_prompt,
        num_sample=run.num_sample,
        reference_keys=ReferenceKeys(
            run.reference_path,
            run.mask_strategy,
            run.align,
            run.loop,
            run.condition_frame_length,
            run.condition_frame_edit,
        ),
        references_of=references_of_prompts(run, where, latent_frames),
        size_of=size_of,
        refine=None if run.refine is None else partial(refine_on_main_rank, run.refine, Path(run.save_dir)),
        change=partial(add_scores, aes=run.aes, flow=run.flow, camera_motion=run.camera_motion),
    )
    if safety_filter is not None:
        check_prompts(safety_filter, requests)
    check_encoder(run.save_format)
    for height, width in {(request.height, request.width) for request in requests} if run.watermark else ():
        draw_watermark(run.watermark, height, width)
    check_cleaning(requests, parts["text_encoder"])
    conditionings = [
        request.conditioning
        for request in requests
        if request.conditioning is not None
        and not is_edited_as_a_whole(request.conditioning, latent_frames(request.num_frames))
    ]
    _check_conditioning(parts, conditionings, where)
    _check_places(requests, latent_frames, where)
    for request in {request.conditioning: request for request in requests}.values():
        warn_of_changes(request)
    return SamplePlan(run, parts, weights, requests, shortcuts, safety_filter)


def _located(recorded: dict[str, Any], weights: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A record with its paths where they lie now, and for those that lie nowhere their dotted key and all places."""
    origin = Origin.of(recorded.get("origin"))
    if origin is None:
        return recorded, {}
    run_dir = run_of_weights(weights)
    absent: dict[str, str] = {}

    def locate(key: str, path: str) -> str:
        place = origin.locate(path, run_dir)
        if place is None and key in origin.local:
            absent[key] = " or ".join(dict.fromkeys(origin.places(path, run_dir)))
        return place or path

    return change_paths(recorded, (), locate), absent


def _require_present(parts: Mapping[str, Any], absent: Mapping[str, str], where: str) -> None:
    """ConfigError for a recorded path that lies nowhere, unless the config names another one."""

    def require(key: str, path: str) -> str:
        if key in absent and path in absent[key]:
            raise ConfigError(
                f"{where}: the run was trained with {key}={path!r}, which is not there any more; looked for: {absent[key]}; "
                f"give {key}=PATH"
            )
        return path

    change_paths(parts, (), require)


def _check_places(requests: Sequence[SampleRequest], latent_frames: Callable[[int], int], where: str) -> None:
    """ConfigError where a strategy names a frame that a reference or the clip does not have."""
    places: dict[tuple[VideoConditioning, int], None] = {
        (request.conditioning, request.num_frames): None for request in requests if request.conditioning is not None
    }
    for conditioning, num_frames in places:
        total, loops = latent_frames(num_frames), range(conditioning.loop)
        lengths = [latent_frames(probe(path).num_frames) for path in conditioning.references]
        for loop in loops:  # each clip is one more reference for the clips behind it
            check_pastes(parse_strategy(conditioning.mask_strategy), lengths, total, loop, f"{where}: mask_strategy")
            lengths.append(total)


def _check_conditioning(parts: dict[str, dict[str, Any]], conditionings: list[VideoConditioning], where: str) -> None:
    """ConfigError unless model and scheduler can take the requests' reference frames and loops.

    conditionings: without clips that are edited as a whole, which every model and scheduler can do.
    """
    if not conditionings:
        return
    key = f"{where}: keys 'reference_path', 'loop'"
    mode = conditioning_mode(parts["model"], key)
    if mode == "latents":
        for conditioning in conditionings:
            require_whole_edits(conditioning, f"{where}: keys 'mask_strategy', 'condition_frame_edit'")
    needed = "image_text_order" if mode == "latents" else "masked_sampling"
    name = parts["scheduler"]["type"]
    if not getattr(class_of(SCHEDULERS, name), needed):
        raise ConfigError(f"{key}: scheduler {name} cannot keep given frames; allowed: for example rflow; change one")


def build_sampler(plan: SamplePlan, device: torch.device) -> tuple[Sampler, GenerationSettings]:
    """Build and load all parts on `device`; WeightsError when weights do not fit."""
    return SamplerBuilder(device).build(plan)


@dataclass
class _Networks:
    """Loaded networks, and the configs that they were made of."""

    model: Denoiser
    codec: Codec
    offload: Offload | None
    weights: str  # their hash
    made_of: tuple[Any, ...]
    text_loaded: bool

    def require_text(self, captions: Sequence[str]) -> None:
        """Load the text encoder, unless it was loaded or all captions are stored."""
        stored = self.codec.captions
        if self.text_loaded or not isinstance(stored, StoredCaptions):
            return
        if stored.has_all(captions):
            logger().info("caption_cache: all captions are in %s; the text encoder is not loaded", stored.store.path)
            return
        self.codec.text_encoder.load()
        self.text_loaded = True


class SamplerBuilder:
    """Builds samplers one after the other; where only scheduler, clip size or prompts change, the networks stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._networks: _Networks | None = None
        self._fit = MemoryFit(device)

    def build(self, plan: SamplePlan) -> tuple[Sampler, GenerationSettings]:
        """Check that the sizes of the requests fit, and load what is not loaded yet. Raises WeightsError, ConfigError."""
        parts = plan.parts
        scheduler = build(SCHEDULERS, parts["scheduler"])
        vae, text = build_autoencoder(parts["vae"]), build(TEXT_ENCODERS, parts["text_encoder"])
        require_frame_counts(vae, _lengths(plan.requests), "sampling")
        first = plan.requests[0]
        inferred = inferred_model_args(vae, text, (first.num_frames, first.height, first.width))
        decided = parts["model"].keys() - {"condition"}  # a model may sample other sizes, but no other classes
        config = fill_model_config(
            parts["model"], {key: value for key, value in inferred.items() if key not in decided}
        )
        for size in {(request.height, request.width) for request in plan.requests}:
            check_image_size("config: key 'image_size'", size, vae, config)
            warn_of_cut_size(size, pixel_steps(vae, config))
        captions = _stored_captions(plan, text)
        if plan.run.max_memory is not None:
            plan = self._fitted(plan, config, text, scheduler, captions)
            parts, vae = plan.parts, build_autoencoder(plan.parts["vae"])
        networks = self._load(plan, config, vae, text, captions)
        networks.require_text(captions_of(plan.requests, networks.model, float(scheduler.cfg_scale)))
        warn_of_cut_prompts(plan.requests, networks.codec.text_encoder)
        config_hash = hash_config({**parts, "model": config, **chosen(plan.run)})
        settings = generation_settings(
            scheduler, dtype=plan.run.dtype, config_hash=config_hash, weights=networks.weights
        )
        sampler = Sampler(
            networks.model,
            scheduler,
            networks.codec,
            shortcuts=plan.shortcuts,
            safety_filter=plan.safety_filter,
            offload=networks.offload,
            encodes_ahead=networks.offload is not None or networks.codec.captions.keeps_all,
        )
        return sampler, settings

    def _fitted(
        self,
        plan: SamplePlan,
        config: dict[str, Any],
        text: TextEncoder,
        scheduler: Scheduler,
        captions: StoredCaptions | None,
    ) -> SamplePlan:
        """The plan with what `max_memory` chooses. config: the model's, complete."""
        unread = False
        if captions is not None:
            with torch.device("meta"):
                model = build_denoiser(config)
            unread = captions.has_all(captions_of(plan.requests, model, float(scheduler.cfg_scale)))
        vae = plan.parts["vae"]
        choice = self._fit.choose(plan.run, config, vae, None if unread else text, scheduler, plan.requests)
        if choice.tiling and not vae.get("use_tiling"):
            vae = {**vae, "use_tiling": True}
        return replace(plan, run=replace(plan.run, model_cpu_offload=choice.offload), parts={**plan.parts, "vae": vae})

    def _load(
        self,
        plan: SamplePlan,
        config: dict[str, Any],
        vae: Autoencoder,
        text: TextEncoder,
        captions: StoredCaptions | None,
    ) -> _Networks:
        parts, run, dtype = plan.parts, plan.run, DTYPES[plan.run.dtype]
        placing = (run.model_cpu_offload, run.caption_cache)
        made_of = (config, parts["vae"], parts["text_encoder"], plan.weights, dtype, placing)
        if self._networks is not None and self._networks.made_of == made_of:
            return self._networks
        self._networks = None  # the old ones leave before new ones come
        pretrained = parts["model"].get("from_pretrained")
        model = build_denoiser(config, pretrained=pretrained)
        if plan.weights is not None:
            load_weights(model, plan.weights)
        offload = self._offload(run)
        model = model.to(self._device if offload is None else HOST, dtype)
        text = text.to(HOST, dtype)
        if captions is None:
            text = text.load()
        codec = Codec(
            load_autoencoder(vae, parts["vae"]), text, self._device, dtype, offload=offload, captions=captions
        )
        weights = weights_id(*[path for path in (plan.weights, pretrained) if path is not None])
        self._networks = _Networks(model, codec, offload, weights, made_of, text_loaded=captions is None)
        return self._networks

    def _offload(self, run: SampleRun) -> Offload | None:
        if not run.model_cpu_offload:
            return None
        if self._device == HOST:
            logger().warning("model_cpu_offload: the networks are computed on the host, so there is nothing to move")
            return None
        return Offload(self._device, select(self._device.type).release_memory)


def _stored_captions(plan: SamplePlan, text: TextEncoder) -> StoredCaptions | None:
    if plan.run.caption_cache is None:
        return None
    return StoredCaptions.open(plan.run.caption_cache, plan.parts["text_encoder"], text, plan.run.dtype)


def _lengths(requests: Sequence[SampleRequest]) -> Iterator[tuple[str, int]]:
    """(key, frames) of every video; the prompt is named where the lengths differ."""
    several = len({request.num_frames for request in requests}) > 1
    for request in requests:
        yield f"num_frames of prompt {request.prompt!r}" if several else "num_frames", request.num_frames


def _part(
    name: str, configured: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None, where: str, run: SampleRun
) -> dict[str, Any]:
    """The recorded part with what the config changes; a config that names another type replaces it whole."""
    if configured is None:
        config = recorded
    elif recorded is None or configured.get("type", recorded["type"]) != recorded["type"]:
        config = configured
    else:
        config = {**recorded, **configured}
    if config is None:
        message = f"{where}: key '{name}': missing, and {_source(run)} does not record it; add {name} = dict(type=...)"
        raise ConfigError(message)
    part = resolve_part(config)
    metadata = next(field.metadata for field in fields(SampleRun) if field.name == name)
    check_component(metadata["registry"], part, name, lambda key: where, supplied=metadata["supplied"])
    return part


def _configured_or_recorded(configured: T | None, recorded: T | None, name: str, where: str, run: SampleRun) -> T:
    value = recorded if configured is None else configured
    if value is None:
        raise ConfigError(f"{where}: key '{name}': missing, and {_source(run)} does not record it; add {name} = ...")
    return value


def _source(run: SampleRun) -> str:
    return f"load={run.load!r}" if run.load is not None else "no checkpoint (key 'load')"
