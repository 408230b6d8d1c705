"""The mask strategy: frames of reference images and videos, their places in a clip, and how far they may change.

A strategy is "loop,reference,reference_start,target_start,length,edit_ratio" with defaults 0,0,0,0,1,0, several joined by
";". Starts and lengths count latent frames, negative starts from the end. edit_ratio 0 keeps a frame, 1 makes it anew,
between noises it that far first. Source: Open-Sora 1.1 and 1.2.
Layout: C channels, T frames, H W rows and columns of latents; pixel videos [3, T, H, W] lie in [-1, 1].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opensora.datasets import transforms
from opensora.datasets.decode import Video
from opensora.errors import ConfigError


class FramePlacement(NamedTuple):
    """One group of a strategy."""

    loop: int = 0  # acts in this loop only
    reference: int = 0  # which of the prompt's references
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_ratio: float = 0.0


def parse_strategy(text: str, where: str = "mask_strategy") -> list[FramePlacement]:
    """The groups of a strategy, none for an empty one; ConfigError says what cannot be read."""
    pastes = []
    for group in text.split(";") if text.strip() else []:
        fields = group.split(",")
        try:
            if len(fields) > len(FramePlacement._fields):
                raise ValueError
            placement = FramePlacement(*map(int, fields[:5]), *map(float, fields[5:]))
        except ValueError:
            raise ConfigError(
                f"{where}: {group!r} in {text!r}; allowed: up to six numbers {','.join(FramePlacement._fields)}, the last from 0 "
                "to 1, groups joined by ';'; correct it"
            ) from None
        if placement.loop < 0 or placement.reference < 0 or placement.length < 1 or not 0 <= placement.edit_ratio <= 1:
            raise ConfigError(
                f"{where}: {group!r} in {text!r}; allowed: loop and reference from 0, length from 1, edit_ratio from 0 to "
                "1; correct it"
            )
        pastes.append(placement)
    return pastes


def paste_references(
    z_CTHW: Tensor,
    references: Sequence[Tensor],
    pastes: Sequence[FramePlacement],
    loop: int = 0,
    align: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Latents with the references' frames in their places, and the mask [T] that a scheduler's `sample` takes.

    references: latents [C, t, H, W] each. align: both starts are moved to a multiple of this many latent frames; an
    autoencoder that codes 17 frames as 5 latents by themselves wants 5. What lies beyond an end is left out, as in
    Open-Sora; `check_pastes` finds it.
    """
    z_CTHW, mask_T = z_CTHW.clone(), torch.ones(z_CTHW.shape[1])
    for paste in pastes:
        if paste.loop != loop:
            continue
        reference = references[paste.reference]
        source = start_of(paste.reference_start, reference.shape[1], align)
        target = start_of(paste.target_start, z_CTHW.shape[1], align)
        length = max(0, min(paste.length, z_CTHW.shape[1] - target, reference.shape[1] - source))
        if paste.edit_ratio < 1:  # a frame that is made anew starts from its noise
            z_CTHW[:, target : target + length] = reference[:, source : source + length].to(z_CTHW)
        mask_T[target : target + length] = paste.edit_ratio
    return z_CTHW, mask_T


def check_pastes(
    pastes: Sequence[FramePlacement],
    reference_frames: Sequence[int],
    frames: int,
    loop: int = 0,
    where: str = "mask_strategy",
) -> None:
    """ConfigError when a group of this loop names a missing reference or frame; all lengths in latent frames."""
    for paste in pastes:
        if paste.loop != loop:
            continue
        if paste.reference >= len(reference_frames):
            raise ConfigError(
                f"{where}: reference {paste.reference} in loop {loop}; there are {len(reference_frames)}, counted "
                "from 0; give more in reference_path, joined by ';'"
            )
        reference = f"reference {paste.reference}"
        for start, length, what in (
            (paste.reference_start, reference_frames[paste.reference], reference),
            (paste.target_start, frames, "the clip"),
        ):
            if not -length <= start < length:
                raise ConfigError(
                    f"{where}: start {start} in {what}, which has {length} latent frames; allowed: {-length} to "
                    f"{length - 1}; correct it"
                )


def nearest_multiple(value: int, step: int, limit: int) -> int:
    """`value` moved down to a multiple of `step`, or up when it lies past the middle and a step fits below `limit`."""
    steps = value // step
    if value % step > step / 2 and steps < limit // step - 1:
        steps += 1
    return steps * step


def continue_from_previous(loop: int, reference: int, length: int, edit_ratio: float) -> FramePlacement:
    """The group that lets a loop begin with the last `length` latent frames of the one before."""
    return FramePlacement(loop, reference, -length, 0, length, edit_ratio)


def frames_of_latents(length: int, latent_frames: Callable[[int], int]) -> int:
    """The fewest pixel frames that the autoencoder turns into `length` latent frames.

    latent_frames: pixel frames -> latent frames of the autoencoder.
    """
    frames = 1
    while latent_frames(frames) < length:
        frames += 1
    return frames


def read_reference(path: str, height: int, width: int) -> Tensor:
    """A picture or video as float32 [3, T, height, width] in [-1, 1], resized until it covers that and cut in the middle.

    Raises BadClip when the file cannot be read.
    """
    with Video(path) as video:
        frames = video.frames(range(video.info.num_frames))
        video_TCHW = torch.stack([transforms.resize_to_cover(frame, (height, width)) for frame in frames])
    rng = torch.Generator()  # a crop in the middle draws nothing
    cut_TCHW = transforms.crop(video_TCHW, (height, width), "center", rng)
    return transforms.to_range(cut_TCHW.transpose(0, 1).contiguous())


def start_of(start: int, frames: int, align: int | None) -> int:
    """A start of a strategy as a place from 0 among `frames` latent frames."""
    position = start + frames if start < 0 else start
    return position if align is None else nearest_multiple(position, align, frames)
