"""Shortcuts of a sampling run: what it leaves out for speed. Without any, the videos are exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.errors import ConfigError
from opensora.registry import CACHES, build
from opensora.sampling.caches.base import StepCache
from opensora.schema import SampleRun

KEYS = ("guidance_interval", "null_every", "cache")


@dataclass(frozen=True)
class Shortcuts:
    """The work that is left out; by default none.

    guidance_interval: lowest and highest noise level, from 0 (data) to 1 (noise), at which guidance acts; elsewhere the
        model sees one copy of the batch, with the caption (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    null_every: calls of the model for which one answer without the caption serves: the difference that the caption made is
        taken over.
    cache: reuses blocks or attention from call to call.
    """

    guidance_interval: tuple[float, float] | None = None
    null_every: int = 1
    cache: StepCache | None = None

    def __post_init__(self) -> None:
        interval = self.guidance_interval
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1):
            raise ConfigError(
                f"key 'guidance_interval': found {tuple(interval)}; allowed: the lowest and the highest noise level, from 0 "
                "to 1; correct it"
            )
        if self.null_every < 1:
            raise ConfigError(f"key 'null_every': found {self.null_every}; allowed: 1 or more; correct it")

    @property
    def needs_level(self) -> bool:
        """True if the noise level of a call matters, which must then come from the device."""
        return self.guidance_interval is not None or self.cache is not None


def shortcuts_of(run: SampleRun) -> Shortcuts:
    """The shortcuts of a config. Raises ConfigError."""
    cache = None if run.cache is None else build(CACHES, run.cache)
    interval: Sequence[float] | None = run.guidance_interval
    return Shortcuts(None if interval is None else tuple(interval), run.null_every, cache)  # type: ignore[arg-type]


def chosen(run: SampleRun) -> Mapping[str, Any]:
    """The keys of shortcuts that are switched on; part of the hash by which a later run skips finished videos."""
    default = SampleRun()
    return {key: getattr(run, key) for key in KEYS if getattr(run, key) != getattr(default, key)}
