"""The metadata of a video: its file name, its json, and the check by which a later run skips it."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opensora.errors import ConfigError
from opensora.files import hash_text, size_of
from opensora.interfaces import Scheduler
from opensora.sampling.video_formats import FORMATS
from opensora.types import SampleRequest

SLUG_LENGTH = 48  # characters; with index and hash a name stays far below the 255 bytes of common file systems


@dataclass(frozen=True)
class GenerationSettings:
    """Everything besides the request that changes the pixels; the same settings and request are never run twice."""

    guidance_scale: float
    steps: int
    batch_size: int
    dtype: str
    config_hash: str  # of the parts' configs, see hash_config
    weights: str  # which weights, see weights_id


def generation_settings(
    scheduler: Scheduler,
    *,
    dtype: str,
    config_hash: str,
    weights: str,
    guidance_scale: float | None = None,
    batch_size: int = 1,
) -> GenerationSettings:
    """The settings of a run; `guidance_scale` None takes the scheduler's `cfg_scale`."""
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size}; it is 1 or more")
    scale = float(scheduler.cfg_scale if guidance_scale is None else guidance_scale)
    return GenerationSettings(scale, int(scheduler.num_sampling_steps), batch_size, dtype, config_hash, weights)


def hash_config(config: Mapping[str, Any]) -> str:
    """16 hex digits that differ when the config does, whatever the order of its keys.

    Pass only what changes the pixels (model, vae, text_encoder, scheduler): with the prompt list inside, adding a
    prompt would redo every video.
    """
    return hash_text(json.dumps(config, sort_keys=True, default=str), 8)


def weights_id(*paths: str | Path) -> str:
    """16 hex digits over the contents of weight files or of all files below weight folders, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            name = str(file.relative_to(path)).encode(errors="surrogateescape")
            digest.update(name + f"\x1f{file.stat().st_size}\x1f".encode())
            with file.open("rb") as opened:
                while chunk := opened.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def request_hash(request: SampleRequest, settings: GenerationSettings) -> str:
    """16 hex digits over all that decides the pixels; the place in the list does not."""
    return hash_text(json.dumps([_pixel_fields(request), asdict(settings)], sort_keys=True), 8)


def slug(text: str, length: int = SLUG_LENGTH) -> str:
    """Lower-case a-z, 0-9 and single inner dashes, at most `length` characters; "video" when nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    return words[:length].rstrip("-") or "video"


def file_stem(request: SampleRequest) -> str:
    """`0003-a-red-circle-1a2b3c4d`: place, words and a hash of the request, so that no two requests share a file.

    Another seed or size is another file; other weights or steps redo the same file.
    """
    again = f"-r{request.repeat}" if request.repeat else ""
    digest = hash_text(json.dumps(_pixel_fields(request), sort_keys=True), 8)[:8]
    return f"{request.index:04d}-{slug(request.prompt)}{again}-{digest}"


def output_path(save_dir: str | Path, request: SampleRequest) -> Path:
    """The path of a video, by its format: `.png` for one frame; its metadata lie next to it as `.json`."""
    ending = ".png" if request.num_frames == 1 else FORMATS[request.save_format].ending
    return Path(save_dir) / f"{file_stem(request)}{ending}"


def record(request: SampleRequest, settings: GenerationSettings, **written: object) -> dict[str, Any]:
    """The json next to a video; `written` describes its file."""
    fields = asdict(request)
    del fields["conditioning"]
    if not request.original_prompt:  # sampled as written
        del fields["original_prompt"]
    conditioning = {} if request.conditioning is None else asdict(request.conditioning)
    return {**fields, **conditioning, **asdict(settings), **written, "request_hash": request_hash(request, settings)}


def is_done(path: Path, request: SampleRequest, settings: GenerationSettings) -> bool:
    """True if `path` is complete and was made by this request with these settings."""
    try:
        known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return known["request_hash"] == request_hash(request, settings) and known["bytes"] == size_of(path)
    except (OSError, ValueError, KeyError, TypeError):  # no record, a damaged one, or no video: not done
        return False


def _pixel_fields(request: SampleRequest) -> dict[str, Any]:
    """The parts of a request that decide the pixels; reference files count by their contents, wherever they lie."""
    fields = asdict(request)
    del fields["index"], fields["original_prompt"]
    for name, default in (("save_fps", None), ("save_format", "mp4"), ("watermark", "")):
        if fields[name] == default:  # hashes of older videos are without them
            del fields[name]
    conditioning = fields.pop("conditioning")
    if conditioning is not None:
        del conditioning["references"]
        fields["given"] = conditioning  # the name in hashes of older videos
    return fields
