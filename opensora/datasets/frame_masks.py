"""Masks of the latent frames of a training clip: conditioning frames, or frames to be noised and learned.

A mask is bool [T]: False = a frame given as a condition, True = noised. A model trained with masks continues videos,
animates images and fills in frames. Kinds, ratios and the order of the random draws are those of Open-Sora 1.1
to 1.3: the same seeds give the same masks.
"""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError

Version = Literal["1.1", "1.2", "1.3"]
IDENTITY = "identity"

# Names of 1.1, and 1.2's slip of the pen, which its configs and weights' records carry on.
_RENAMED = {"no": IDENTITY, "intepolate": "interpolate"}


class Sources(NamedTuple):
    """The two streams that a mask draws from."""

    rng: Random  # kind, position and length
    generator: Generator  # frame by frame, for kind "random"


def _span(frames: int, start: int, length: int) -> Tensor:
    conditioning = torch.zeros(frames, dtype=torch.bool)
    conditioning[start : start + length] = True
    return ~conditioning


def _anywhere(frames: int, longest: int, rng: Random) -> Tensor:
    length = rng.randint(1, longest)
    return _span(frames, rng.randint(0, frames - length), length)


def _ends(frames: int, head: int, tail: int) -> Tensor:
    return _span(frames, 0, head) & _span(frames, frames - tail, tail)


def _quarter(frames: int) -> int:
    return max(frames // 4, 1)  # Open-Sora breaks off below 4 frames


def _quarter_head_tail(frames: int, rng: Random) -> Tensor:
    length = rng.randint(1, _quarter(frames))
    return _ends(frames, length, length)


def _random(frames: int, sources: Sources) -> Tensor:
    ratio = sources.rng.uniform(0.1, 0.9)
    return torch.rand(frames, generator=sources.generator) > ratio


def _interpolate(frames: int, rng: Random) -> Tensor:
    return torch.arange(frames) % 2 != rng.randint(0, 1)


# kind -> mask of a clip of at least 2 frames
KINDS: dict[str, Callable[[int, Sources], Tensor]] = {
    "quarter_random": lambda frames, sources: _anywhere(frames, _quarter(frames), sources.rng),
    "quarter_head": lambda frames, sources: _ends(frames, sources.rng.randint(1, _quarter(frames)), 0),
    "quarter_tail": lambda frames, sources: _ends(frames, 0, sources.rng.randint(1, _quarter(frames))),
    "quarter_head_tail": lambda frames, sources: _quarter_head_tail(frames, sources.rng),
    "image_random": lambda frames, sources: _span(frames, sources.rng.randint(0, frames - 1), 1),
    "image_head": lambda frames, sources: _ends(frames, 1, 0),
    "image_tail": lambda frames, sources: _ends(frames, 0, 1),
    "image_head_tail": lambda frames, sources: _ends(frames, 1, 1),
    "random": _random,
    "interpolate": lambda frames, sources: _interpolate(frames, sources.rng),
    IDENTITY: lambda frames, sources: torch.ones(frames, dtype=torch.bool),
}


class FrameMasks:
    """Draws masks of several kinds.

    ratios: kind -> share of the samples. What is missing to 1 trains without a condition; in version "1.1" the shares
        must make 1. Names may carry 1.1's prefix: "mask_quarter_head", "mask_no".
    version: before "1.3" a mask may leave nothing to learn (both ends of a clip of two frames), except for "random".
    Raises ConfigError for kinds and shares that cannot be used.
    """

    def __init__(self, ratios: Mapping[str, float], version: Version = "1.3") -> None:
        self.version = version
        self.ratios = _renamed(ratios, kind_name)
        _check_ratios("mask_ratios", self.ratios, KINDS, complete=version == "1.1" or IDENTITY in self.ratios)
        if IDENTITY not in self.ratios:
            self.ratios[IDENTITY] = 1 - sum(self.ratios.values())

    def draw(self, frames: int, rng: Random, generator: Generator) -> Tensor:
        """The mask of one clip of `frames` latent frames, bool [T]; an image has none."""
        kind = choose(self.ratios, rng)  # drawn for an image as well, as in Open-Sora
        if frames <= 1:
            return torch.ones(frames, dtype=torch.bool)
        mask_T = KINDS[kind](frames, Sources(rng, generator))
        if not mask_T.any() and (kind == "random" or self.version == "1.3"):
            mask_T[-1] = True
        return mask_T


def kind_name(name: str) -> str:
    """The name used here of a kind as any version writes it."""
    short = name.removeprefix("mask_")
    return _RENAMED.get(short, short)


def _renamed(ratios: Mapping[str, float], name_of: Callable[[str], str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name, ratio in ratios.items():
        shares[name_of(name)] = shares.get(name_of(name), 0.0) + ratio  # two names of one kind add up
    return shares


def choose(ratios: Mapping[str, float], rng: Random) -> str:
    """One of the names, by their shares, with one draw."""
    draw, reached = rng.random(), 0.0
    for name, ratio in ratios.items():
        reached += ratio
        if draw < reached:
            return name
    return list(ratios)[-1]  # the shares' sum was rounded below 1


def _check_ratios(where: str, ratios: Mapping[str, float], allowed: Mapping[str, object], complete: bool) -> None:
    for name, ratio in ratios.items():
        if name not in allowed:
            raise ConfigError(f"{where}: kind {name!r}; allowed: {', '.join(allowed)}; name one of them")
        if not 0 <= ratio <= 1:
            raise ConfigError(f"{where}: {name}={ratio}; allowed: a share from 0 to 1; correct it")
    total = sum(ratios.values())
    if total > 1 + 1e-6 or (complete and not math.isclose(total, 1, abs_tol=1e-6)):
        wanted = "exactly 1" if complete else "at most 1"
        raise ConfigError(f"{where}: the shares make {total:g}; allowed: {wanted}; correct them")


def _either_end(frames: int, rng: Random) -> range:
    """Frames from the start, or frames up to the end: `other` of Open-Sora 1.3, with its two draws in its order."""
    edge = rng.choices([0, frames - 1])[0]
    frame = rng.randint(1, max(frames - 2, 1))  # Open-Sora breaks off at two frames
    return range(frame) if edge == 0 else range(frame, frames)


# Open-Sora 1.3 conditions by frame indices instead: condition -> the frames given, of a clip of `frames` latent frames.
CONDITIONS: dict[str, Callable[[int, Random], range | list[int]]] = {
    "i2v_head": lambda frames, rng: [0],
    "i2v_tail": lambda frames, rng: [frames - 1],
    "i2v_loop": lambda frames, rng: [0, frames - 1],
    "v2v_head": lambda frames, rng: range(frames // 2),
    "v2v_tail": lambda frames, rng: range(frames // 2, frames),
    "other": _either_end,
    "none": lambda frames, rng: [],
}


def condition_name(name: str) -> str:
    """Open-Sora's short name "i2v" in full."""
    return "i2v_head" if name == "i2v" else name


class FrameConditions:
    """Draws the given frames as Open-Sora 1.3 does: indices, for a model that takes `mask_index`.

    ratios: condition -> share of the samples; what is missing to 1 is "none". "i2v" is "i2v_head".
    Raises ConfigError for conditions and shares that cannot be used.
    """

    def __init__(self, ratios: Mapping[str, float]) -> None:
        self.ratios = _renamed(ratios, condition_name)
        _check_ratios("mask_ratios", self.ratios, CONDITIONS, complete="none" in self.ratios)
        if "none" not in self.ratios:
            self.ratios["none"] = 1 - sum(self.ratios.values())

    def draw(self, frames: int, rng: Random) -> list[int]:
        """Ascending indices of the given frames of one clip; an image has none."""
        kind = choose(self.ratios, rng)  # drawn for an image as well, as for masks
        return list(CONDITIONS[kind](frames, rng)) if frames > 1 else []
