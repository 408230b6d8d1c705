"""Pyramid Attention Broadcast: attention is computed at every few steps in the middle of sampling and reused in between.

Source: Zhao et al. 2024, arXiv:2408.12588, section 3.2.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Denoiser
from opensora.models.latte_t2v.attention import CaptionCrossAttention, CompressedSelfAttention
from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.registry import CACHES
from opensora.sampling.caches.base import CacheState, Call, Counts, PerCopy, StepCache, replaced_forwards

Kind = Literal["spatial", "temporal", "cross"]


class KeptOutput:
    """The output of one attention, and for each copy the number of the call that computed it."""

    def __init__(self) -> None:
        self.rows, self.computed = PerCopy(), dict[int, int]()


class BroadcastState(CacheState):
    """The outputs of all attentions of a clip."""

    def __init__(self, noise_levels: Sequence[float]):
        self.low, self.high = noise_levels
        self.counts = Counts("attentions")
        self._kept: dict[tuple[str, int], KeptOutput] = {}

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        self.call = call
        self.runs: Counter[str] = Counter()  # of each attention in this call: frames may attend to two texts
        yield

    def attend(
        self, name: str, span: int, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The `forward` of the attention of this name, or what it gave at most span - 1 calls ago."""
        call = self.call
        kept = self._kept.setdefault((name, self.runs[name]), KeptOutput())
        self.runs[name] += 1
        before = kept.rows.get(call.copies)
        recent = all(call.number - kept.computed.get(copy, -span) < span for copy in call.copies)
        if before is not None and recent and self.low <= call.level <= self.high:
            self.counts.skipped += 1
            return before
        self.counts.ran += 1
        out = forward(x, *args, **kwargs)
        kept.rows.put(call.copies, out)
        kept.computed |= dict.fromkeys(call.copies, call.number)
        return out


@CACHES.register_module()
class PyramidAttentionBroadcast(StepCache):
    """Reuse the output of each attention for some calls of the model, of each kind for its own number.

    spatial, temporal, cross: calls that one computation serves; 1 reuses nothing. Attention over frames and patches
        jointly (DiT, PixArt) counts as spatial. The paper's are 2, 4 and 6; they grow with the number of steps.
    noise_levels: lowest and highest at which outputs are reused, from 0 (data) to 1 (noise).
    Memory: the output of every attention that has a span above 1.
    """

    def __init__(self, spatial: int = 2, temporal: int = 4, cross: int = 6, noise_levels: Sequence[float] = (0.1, 0.8)):
        if len(noise_levels) != 2 or not 0 <= noise_levels[0] <= noise_levels[1] <= 1:
            raise ConfigError(
                f"cache.noise_levels: {tuple(noise_levels)}; allowed: the lowest and the highest, from 0 to 1; correct them"
            )
        self.spans: dict[Kind, int] = {"spatial": spatial, "temporal": temporal, "cross": cross}
        self.noise_levels = noise_levels

    @contextmanager
    def installed(self, model: Denoiser) -> Iterator[CacheState]:
        state = BroadcastState(self.noise_levels)
        forwards = [
            (attention, partial(state.attend, name, self.spans[kind], attention.forward))
            for name, (kind, attention) in attentions(model).items()
            if self.spans[kind] > 1
        ]
        with replaced_forwards(forwards):
            yield state


def attentions(model: nn.Module) -> dict[str, tuple[Kind, nn.Module]]:
    """Name -> kind and module of every attention. Those along time have "temp" in a name or in their class."""
    kinds: dict[str, tuple[Kind, nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, CrossAttention | CaptionCrossAttention):
            kinds[name] = "cross", module
        elif isinstance(module, SelfAttention | CompressedSelfAttention):
            along_time = "temp" in f"{name} {type(module).__name__}".lower()
            kinds[name] = "temporal" if along_time else "spatial", module
    return kinds
