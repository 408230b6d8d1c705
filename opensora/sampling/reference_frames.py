"""Reference frames of a sampling run: from the config's keys to a request's conditioning, and from there to latents.

A request's references are encoded once. In each loop their frames are pasted into the noise; a further loop begins with
the end of the clip before.
Layout: C channels, T frames, H W rows and columns.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from opensora.datasets.decode import VideoInfo, probe
from opensora.errors import BadClip, ConfigError
from opensora.files import expand_home
from opensora.interfaces import Autoencoder
from opensora.log import logger
from opensora.models.codec import Codec
from opensora.sampling.mask_strategy import (
    FramePlacement,
    check_pastes,
    continue_from_previous,
    frames_of_latents,
    parse_strategy,
    paste_references,
    read_reference,
    start_of,
)
from opensora.sampling.metadata import weights_id
from opensora.types import SampleRequest, VideoConditioning

LONGEST_OVERLAP = 5  # latent frames that a further loop repeats by default
LONGEST_REFERENCE = 10_000  # frames
LOSS_MENTIONED = 0.05  # share of a picture, or of a rate
FIRST_FRAME = "0"  # the strategy of a reference that comes without one

Strategy = str | int | float | Sequence[int | float]  # as the command line may have read it


@dataclass(frozen=True)
class ReferenceKeys:
    """A run's keys for reference frames and loops; see schema.py."""

    reference_path: str | list[str] | None = None
    mask_strategy: str | int | Sequence[int | float] | list[str] = ""
    align: int | None = None
    loop: int = 1
    condition_frame_length: int | None = None
    condition_frame_edit: float = 0.0

    def of_prompts(self, count: int) -> list[tuple[str, str]]:
        """(reference_path, mask_strategy) of each prompt; ConfigError when a list has another length."""
        paths = _for_each(self.reference_path or "", count, "reference_path")
        strategies = _for_each(strategy_text(self.mask_strategy), count, "mask_strategy")
        return list(zip(paths, strategies, strict=True))

    def for_prompt(self, reference_path: str, mask_strategy: str, where: str) -> VideoConditioning | None:
        """The conditioning of one prompt, None without any. ConfigError for unreadable files or a wrong strategy."""
        paths = split_paths(reference_path)
        if not paths and not mask_strategy.strip() and self.loop == 1:
            return None
        strategy = mask_strategy.strip() or (FIRST_FRAME if paths else "")
        for paste in parse_strategy(strategy, f"{where}: mask_strategy"):
            # a loop adds the clip before it to the references
            if paste.reference >= len(paths) + paste.loop:
                raise ConfigError(
                    f"{where}: mask_strategy {strategy!r} names reference {paste.reference}; there are {len(paths)}, "
                    "counted from 0; give more in reference_path, joined by ';'"
                )
            if paste.loop >= self.loop:
                raise ConfigError(
                    f"{where}: mask_strategy {strategy!r} names loop {paste.loop}; there are {self.loop}, counted from 0; "
                    "set loop or correct it"
                )
        for path in paths:
            probe_reference(path, f"{where}: reference_path")
        contents = weights_id(*paths) if paths else ""
        rest = (self.align, self.loop, self.condition_frame_length, self.condition_frame_edit)
        return VideoConditioning(paths, contents, strategy, *rest)


def probe_reference(path: str, where: str) -> VideoInfo:
    """Size and length of a picture or clip to build on; ConfigError for one that is missing, unreadable or far too long."""
    if not Path(path).exists():
        raise ConfigError(f"{where}: {path}: no such file (looked for {Path(path).absolute()}); correct the path")
    try:
        info = probe(path)
    except BadClip as error:
        raise ConfigError(f"{where}: {error}") from None
    if info.num_frames > LONGEST_REFERENCE:
        raise ConfigError(
            f"{where}: {path} has {info.num_frames} frames, which would all be read; allowed: up to {LONGEST_REFERENCE}; "
            "cut out the part that you want"
        )
    return info


def warn_of_changes(request: SampleRequest) -> None:
    """A warning for each reference that is cut to the video's ratio of sides or plays at another rate than in its file."""
    for path in () if request.conditioning is None else request.conditioning.references:
        info = probe(path)
        wide = info.width * request.height / (info.height * request.width)
        lost = 1 - min(wide, 1 / wide)
        if lost > LOSS_MENTIONED:
            logger().warning(
                "%s: %d rows of %d pixels become %d of %d: %.0f%% of it, at the %s, is cut off",
                path, info.height, info.width, request.height, request.width, 100 * lost,
                "left and right" if wide > 1 else "top and bottom",
            )  # fmt: skip
        if info.num_frames > 1 and abs(info.fps / request.fps - 1) > LOSS_MENTIONED:
            logger().warning(
                "%s: has %g frames per second, the video %g; its frames are taken one by one, so they play %s here",
                path, info.fps, request.fps, "slower" if info.fps > request.fps else "faster",
            )  # fmt: skip


def strategy_text(value: object) -> str | list[str]:
    """A strategy as written: the command line reads 0 as a number and 0,0,0,0,2 as a tuple of them."""
    if isinstance(value, str | list):
        return value
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _for_each(value: str | list[str], count: int, name: str) -> list[str]:
    if isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise ConfigError(
            f"{name}: {len(value)} entries for {count} prompts; allowed: one text for all, or a list with one per prompt "
            "('' for none); correct it"
        )
    return value


class ReferenceFrames:
    """The encoded references of one request, and where their frames go, loop by loop."""

    def __init__(self, request: SampleRequest, codec: Codec) -> None:
        self.request = request
        self.conditioning = request.conditioning or VideoConditioning()
        self.codec = codec
        self.pastes = parse_strategy(self.conditioning.mask_strategy)
        self.references: list[Tensor] = []  # latents: of the files and the loops, which strategies count
        self._parts: dict[FramePlacement, Tensor] = {}  # latents of parts that begin a clip
        for path in self.conditioning.references:
            self._append(read_reference(path, request.height, request.width))

    def paste(self, noise_CTHW: Tensor, loop: int) -> tuple[Tensor, Tensor]:
        """Noise with this loop's reference frames, [C, T, H, W], and its mask [T]: all ones without such frames."""
        check_pastes(self.pastes, [latents.shape[1] for latents in self.references], noise_CTHW.shape[1], loop)
        pastes, references = list(self.pastes), list(self.references)
        for place, paste in enumerate(pastes):
            if paste in self._parts:
                pastes[place] = paste._replace(reference=len(references), reference_start=0)
                references.append(self._parts[paste])
        return paste_references(noise_CTHW, references, pastes, loop, self.conditioning.align)

    def append_clip(self, video_CTHW: Tensor, loop: int) -> None:
        """Begin `loop` with the end of the clip before it."""
        length, edit = condition_frame_length(self.request, self.codec.vae), self.conditioning.condition_frame_edit
        self.pastes.append(continue_from_previous(loop, len(self.references), length, edit))
        self._append(video_CTHW)

    def _append(self, video_CTHW: Tensor) -> None:
        """Encode one more reference. A part of it that begins a clip is encoded as a clip of its own.

        The first latent frame of a causal autoencoder is one picture, each later one is several: the last of a clip is no
        beginning of another. Where frames are coded one by one, or in chunks that the part consists of, nothing changes.
        """
        number, latents_CTHW = len(self.references), self._encode(video_CTHW)
        self.references.append(latents_CTHW)
        clip, total = self._latent_frames(self.request.num_frames), latents_CTHW.shape[1]
        for paste in self.pastes:
            starts = [
                start_of(start, frames, self.conditioning.align)
                for start, frames in ((paste.target_start, clip), (paste.reference_start, total))
            ]
            if paste.reference == number and starts[0] == 0 and 0 < starts[1] < total:
                length = min(paste.length, total - starts[1], clip)
                end = frames_of_latents(starts[1] + length, self._latent_frames)
                begin = max(0, end - frames_of_latents(length, self._latent_frames))
                self._parts[paste] = self._encode(video_CTHW[:, begin:end])

    def _latent_frames(self, num_frames: int) -> int:
        return self.codec.vae.latent_size((num_frames, self.request.height, self.request.width))[0]

    def _encode(self, video_CTHW: Tensor) -> Tensor:
        return self.codec.encode_video(video_CTHW[None])[0]  # the mode: the same frames are the same latents


def num_loops(request: SampleRequest) -> int:
    """Clips that are made one after the other and joined."""
    return 1 if request.conditioning is None else request.conditioning.loop


def condition_frame_length(request: SampleRequest, vae: Autoencoder) -> int:
    """Latent frames with which a further loop begins: those of the request, by default 5 or half of a shorter clip."""
    conditioning = request.conditioning or VideoConditioning()
    if conditioning.condition_frame_length is not None:
        return conditioning.condition_frame_length
    available = vae.latent_size((request.num_frames, request.height, request.width))[0]
    return min(LONGEST_OVERLAP, max(1, available // 2))


def with_condition_frame_length(request: SampleRequest, vae: Autoencoder) -> SampleRequest:
    """The request with the number in place of the default, so that its metadata and its hash hold it."""
    if request.conditioning is None:
        return request
    length = condition_frame_length(request, vae) if request.conditioning.loop > 1 else LONGEST_OVERLAP
    if request.conditioning.condition_frame_length is not None:
        return request
    return replace(request, conditioning=replace(request.conditioning, condition_frame_length=length))


def overlap_frames(request: SampleRequest, vae: Autoencoder) -> int:
    """Pixel frames of a further loop that repeat the clip before; ConfigError when nothing new would be left."""
    conditioning = request.conditioning
    if conditioning is None or conditioning.loop == 1:
        return 0
    size = (request.num_frames, request.height, request.width)
    available, repeated = vae.latent_size(size)[0], condition_frame_length(request, vae)
    if repeated >= available:
        raise ConfigError(
            f"condition_frame_length: {repeated} latent frames are repeated, but a clip of "
            f"{request.num_frames} frames has {available}; allowed: 1 to {available - 1}; change it or set loop=1"
        )
    return frames_of_latents(repeated, lambda n: vae.latent_size((n, *size[1:]))[0])


def initial_latents(
    references: Sequence[ReferenceFrames], noise_BCTHW: Sequence[Tensor], loop: int
) -> tuple[Tensor, Tensor | None]:
    """A batch's noise with its reference frames, and the mask [B, T]; no mask when the batch has no such frame."""
    pairs = [frames.paste(noise_CTHW, loop) for frames, noise_CTHW in zip(references, noise_BCTHW, strict=True)]
    z_BCTHW, mask_BT = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    return z_BCTHW, None if bool((mask_BT == 1).all()) else mask_BT


def reference_latents(
    references: Sequence[ReferenceFrames], noise_BCTHW: Sequence[Tensor], loop: int
) -> tuple[Tensor, list[list[int]]]:
    """For a conditioned model: latents [B, C, T, H, W] that hold the reference frames, and each sample's frame numbers."""
    for frames in references:
        require_whole_edits(frames.conditioning, "mask_strategy, condition_frame_edit")
    pairs = [frames.paste(torch.zeros_like(noise), loop) for frames, noise in zip(references, noise_BCTHW, strict=True)]
    latents_BCTHW = torch.stack([latents for latents, _ in pairs])
    return latents_BCTHW, [(mask_T == 0).nonzero().flatten().tolist() for _, mask_T in pairs]


def is_edited_as_a_whole(conditioning: VideoConditioning, latent_frames: int) -> bool:
    """True if all frames of the clip start from one reference with the same share of noise, so that none is clean."""
    if conditioning.loop > 1:
        return False
    edits = parse_strategy(conditioning.mask_strategy)
    return (
        len(edits) == 1
        and 0 < edits[0].edit_ratio < 1
        and edits[0].target_start in (0, -latent_frames)
        and edits[0].length >= latent_frames
    )


def require_whole_edits(conditioning: VideoConditioning, where: str) -> None:
    """ConfigError when a frame is to be kept in part, which a conditioned model cannot do: it starts from noise alone."""
    ratios = [paste.edit_ratio for paste in parse_strategy(conditioning.mask_strategy)]
    if conditioning.loop > 1:
        ratios.append(conditioning.condition_frame_edit)
    between = [ratio for ratio in ratios if 0 < ratio < 1]
    if between:
        raise ConfigError(
            f"{where}: edit ratio {between[0]:g}; allowed: 0 (given) or 1 (made anew), for this model gets given "
            "frames as separate latents and starts from noise alone; correct it or take a model with frame masks"
        )


def split_paths(reference_path: str, folder: Path | None = None) -> tuple[str, ...]:
    """The paths of a text that joins them by ";", with ~ expanded; the name of an existing file may hold a ";" itself.

    folder: relative paths count from it; None leaves them as they are.
    """

    def placed(parts: Sequence[str]) -> str:
        path = expand_home(";".join(parts).strip())
        return path if folder is None else str(folder / path)

    parts, paths = reference_path.split(";"), []
    while parts:
        length = next((n for n in range(len(parts), 1, -1) if os.path.isfile(placed(parts[:n]))), 1)
        if any(part.strip() for part in parts[:length]):
            paths.append(placed(parts[:length]))
        parts = parts[length:]
    return tuple(paths)


def resolve(reference_path: str, folder: Path) -> str:
    """Paths written in a table are relative to its folder."""
    return ";".join(split_paths(reference_path, folder))
