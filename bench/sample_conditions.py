"""Adherence of videos with conditioning frames and with negative prompts, on MovingShapes' held-out combinations."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.sample_figures import Sampled, adherence, sample
from opensora.datasets.moving_shapes import DIRECTIONS, HOLDOUT, Attributes, MovingShapes
from opensora.evaluation.psnr import psnr
from opensora.evaluation.shape_adherence import accuracy, ideal_clip
from opensora.platforms import Platform
from opensora.rng import Draw
from opensora.sampling.conditions import Conditions
from opensora.sampling.generate import Sampler
from opensora.sampling.reference_frames import ReferenceKeys
from opensora.sampling.video_writer import rgb_frames, write_rgb
from opensora.types import SampleRequest

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
# choice -> the keys of a config that it sets
GIVEN = {
    "none": (),
    "first frame": ("first_frame",),
    "last frame": ("last_frame",),
    "first and last frame": ("first_frame", "last_frame"),
    "a clip to extend": ("extend",),
}
SCALES = (1.5, 2.5, 4.0)


def frame_rows(
    sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform, seed: int = 7
) -> list[dict[str, Any]]:
    """Videos that begin or end with a frame of a clip of their combination, drawn anew; one row for each choice.

    psnr: of the given frames in the video, mean and worst, dB. codec_psnr: the same after the autoencoder alone, which no
    sampler can exceed by much. direction: the place of an object decides much of where it goes, for the drawn clips stay inside
    the picture; so a clip to extend has no figures of what follows, which would leave it.
    """
    clips = torch.stack([_clip_of(request, seed, number) for number, request in enumerate(requests)])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, keys in GIVEN.items():
            conditioned = [
                _conditioned(request, clip, keys, sampler, Path(folder) / f"{number}-{request.repeat}")
                for number, (request, clip) in enumerate(zip(requests, clips, strict=True))
            ]
            rows.append(
                {"given": name, **_frame_row(sample(sampler, conditioned, platform), requests, clips, keys, sampler)}
            )
    return rows


def _clip_of(request: SampleRequest, seed: int, number: int) -> Tensor:
    """A clip of the combination in the prompt, [3, T, H, W]."""
    size = (request.height, request.width)
    shapes = MovingShapes(len(HOLDOUT), request.num_frames, size, "holdout", request.fps)
    return shapes.clip(HOLDOUT.index(_attributes(request)), Draw(seed, 0, number)).video_CTHW


def _conditioned(
    request: SampleRequest, clip_CTHW: Tensor, keys: Sequence[str], sampler: Sampler, stem: Path
) -> SampleRequest:
    """The request with its pictures, as `--first-frame` and `--last-frame` give them."""
    if not keys:
        return request
    files: dict[str, Any] = {}
    for key in keys:
        frames_THWC = rgb_frames(clip_CTHW)
        if key == "extend":
            files[key] = f"{stem}.mp4"
            write_rgb(frames_THWC, Path(files[key]), request.fps, "mp4")
        else:
            files[key] = f"{stem}-{key}.png"
            Image.fromarray(frames_THWC[0 if key == "first_frame" else -1]).save(files[key])
    vae, size = sampler.codec.vae, (request.height, request.width)
    words = Conditions("bench", **files).words(request.num_frames, lambda frames: vae.latent_size((frames, *size))[0])
    return replace(request, conditioning=ReferenceKeys().for_prompt(*words, "bench"))


def _frame_row(
    sampled: Sampled, requests: Sequence[SampleRequest], clips: Tensor, keys: Sequence[str], sampler: Sampler
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if "extend" not in keys:
        shown = accuracy(list(sampled.videos), [request.prompt for request in requests])
        row |= {"direction": shown.direction, "adherence": shown.all, **distance(sampled, requests)}
    if keys:
        # (place in the video, place in the clip) of each conditioning frame
        places = [(0 if key in ("first_frame", "extend") else -1, 0 if key == "first_frame" else -1) for key in keys]
        wanted = [clips[:, :, [of_clip]] for _, of_clip in places]
        shown_frames = [sampled.videos[:, :, [of_video]] for of_video, _ in places]
        codec = sampler.codec
        limits = torch.stack([psnr(codec.decode_video(codec.encode_video(frame), 1), frame) for frame in wanted])
        decibels = torch.stack([psnr(*pair) for pair in zip(shown_frames, wanted, strict=True)])
        row |= {"psnr": decibels.mean().item(), "worst_psnr": decibels.min().item(), "codec_psnr": limits.mean().item()}
    return row


def negative_rows(sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform) -> list[dict[str, Any]]:
    """Adherence with each negative prompt at each guidance scale, from the same noise."""
    rows = []
    for scale, (name, negatives) in product(SCALES, _negatives(requests)):
        sampler.scheduler.cfg_scale, before = scale, sampler.scheduler.cfg_scale
        changed = [replace(request, negative_prompt=text) for request, text in zip(requests, negatives, strict=True)]
        sampled = sample(sampler, changed, platform)
        sampler.scheduler.cfg_scale = before
        row = {"negative_prompt": name, "guidance_scale": scale, "adherence": adherence(sampled, requests)}
        rows.append(row | distance(sampled, requests))
    return rows


def _negatives(requests: Sequence[SampleRequest]) -> Iterator[tuple[str, list[str]]]:
    """(name, a negative prompt for each request)."""
    yield "null caption", ["" for _ in requests]
    wanted = [_attributes(request) for request in requests]
    yield "the opposite direction", [replace(each, direction=OPPOSITE[each.direction]).caption() for each in wanted]
    others = [replace(each, direction=_across(each.direction)).caption() for each in wanted]
    yield "a direction across", others
    yield "blurry, low quality", ["blurry, low quality" for _ in requests]


def _attributes(request: SampleRequest) -> Attributes:
    return next(each for each in HOLDOUT if each.caption() == request.prompt)


def _across(direction: str) -> str:
    x, y = DIRECTIONS[direction]
    return next(name for name, step in DIRECTIONS.items() if step == (y, x))


def distance(sampled: Sampled, requests: Sequence[SampleRequest]) -> dict[str, float]:
    """PSNR in dB to the clips that MovingShapes would draw, at the place and size of the object in the video."""
    ideal = torch.stack(
        [ideal_clip(video, _attributes(each)) for video, each in zip(sampled.videos, requests, strict=True)]
    )
    return {"drawing_psnr": psnr(sampled.videos, ideal).mean().item()}
