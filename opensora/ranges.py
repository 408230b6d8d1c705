"""Ranges of numbers: those that run keys and arguments of components may hold, and their words in messages.

An argument of one name means the same in every component, so ARGUMENTS goes by names. Other whole numbers count
something and are 1 or more; other fractions are any finite number.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; None: no limit on that side. NaN and infinity are in no range."""

    low: float | None = None
    high: float | None = None
    above_low: bool = False  # `low` itself is not in it
    below_high: bool = False  # `high` itself is not in it

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low or (self.above_low and value == self.low)):
            return False
        return self.high is None or value < self.high or (value == self.high and not self.below_high)

    def __str__(self) -> str:
        """The range in words, for the part of a message after "allowed:"."""
        if self.low is None:
            return "a finite number"
        if self.high is None:
            return f"a number above {self.low}" if self.above_low else f"{self.low} or more"
        high = f"below {self.high}" if self.below_high else f"{self.high}"
        if self.above_low:
            return f"a number above {self.low}, up to {high}"
        return f"from {self.low} to {high}" if self.below_high else f"{self.low} to {high}"


FINITE = Range()
POSITIVE = Range(0, above_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
SECONDS = Range(0, 365 * 24 * 3600, above_low=True)  # up to a year: clocks and stores take no number of any size
BELOW_1 = Range(0, 1, below_high=True)

ARGUMENTS = {
    # optimizers and their schedules
    "lr": NOT_NEGATIVE,
    "betas": BELOW_1,
    "eps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "end_factor": NOT_NEGATIVE,
    # models and autoencoders
    "mlp_ratio": POSITIVE,
    "norm_eps": NOT_NEGATIVE,
    "dropout": SHARE,
    "class_dropout_prob": SHARE,
    "drop_path": BELOW_1,
    "space_scale": POSITIVE,
    "time_scale": POSITIVE,
    "scaling_factor": POSITIVE,
    "latent_scale": POSITIVE,
    "scale": POSITIVE,
    "tile_overlap_factor": BELOW_1,
    "kernel_size": Range(-1),  # -1: as long as the axis
    "down_sampling_layer": NOT_NEGATIVE,  # numbers of levels, counted from 0
    # schedulers
    "timestep_respacing": NOT_NEGATIVE,  # a section may be left out
    "transform_scale": POSITIVE,
    "eta": SHARE,
    "guidance_rescale": SHARE,
    "force_num": NOT_NEGATIVE,
    # caches of sampling
    "threshold": NOT_NEGATIVE,
    "noise_levels": SHARE,
    # metrics
    "seed": FINITE,
    "temperature": NOT_NEGATIVE,
    "retries": NOT_NEGATIVE,
    # data sets
    "fps": POSITIVE,
    "time_range": SHARE,
    "cache_megabytes": NOT_NEGATIVE,
}
LENGTHS = {
    "betas": 2,
    "time_range": 2,
    "noise_levels": 2,
    "image_size": 2,
    "input_size": 3,
    "patch_size": 3,
}  # of a list of that name


def range_of(argument: str, counts: bool) -> Range:
    """The range of a component's argument. counts: its type has whole numbers and no fractions."""
    return ARGUMENTS.get(argument, COUNT if counts else FINITE)


def numbers_in(value: object) -> Iterator[float]:
    """Every number in `value`, at any depth of lists and dicts; True and False are none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
