"""A denoiser as a scheduler calls it: with all inputs of one clip bound to it but the noisy latents.

B videos; guidance makes copies of the batch, so that a call has copies * B rows. C T H W latent channels, frames, rows,
columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from opensora.interfaces import Denoiser
from opensora.models.layers.clip_cache import ClipCache
from opensora.sampling.caches.base import CacheState, Call
from opensora.sampling.model_inputs import ModelInputs
from opensora.sampling.shortcuts import Shortcuts

Look = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], None]


class BoundDenoiser:
    """Calls a model on the copies of the batch that are needed; the answers for the others follow from earlier calls.

    Every clip needs one of its own. calls: of the model in the whole clip, which caches need; else None. num_timesteps: of the
    scheduler.
    look: called after each call with its number, the noisy latents [B, C, T, H, W], the answer with the caption, timesteps
    and frame mask of the videos.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        inputs: ModelInputs,
        shortcuts: Shortcuts,
        state: CacheState | None,
        num_timesteps: int,
        calls: int | None,
        look: Look | None = None,
    ):
        self.forward, self.shortcuts, self.state = forward, shortcuts, state
        self.num_timesteps, self.calls, self.look = num_timesteps, calls, look
        self.all_copies = tuple(range(len(inputs.copies)))
        self.with_caption = inputs.copies.index("cond")
        self._inputs = {self.all_copies: inputs}
        self._caches: dict[tuple[int, ...], ClipCache] = {}
        self.number = 0  # of the next call
        self.copies_seen = 0  # of the batch, in all calls so far
        self._differences: list[Tensor] | None = None  # answer with the caption less that of each copy
        self._answered = 0  # number of the call that gave them

    def __call__(self, x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        """The model's answers for all copies, from noisy latents [copies * B, C, T, H, W]."""
        level = t_B[0].item() / self.num_timesteps if self.shortcuts.needs_level else 0.0
        guided, wanted = self._guided(level), self.all_copies
        reuses = self._differences is not None and self.number - self._answered < self.shortcuts.null_every
        if not guided or reuses:
            wanted = (self.with_caption,)
        call = Call(self.number, self.number + 1 == self.calls, wanted, level)
        with self.state.calling(call) if self.state is not None else nullcontext():
            answers = self._call(wanted, x, t_B, x_mask)
        if self.look is not None:
            answer = answers.chunk(len(wanted))[wanted.index(self.with_caption)]
            caption = (self.with_caption,)
            mask = None if x_mask is None else self._rows(caption, x_mask)
            self.look(call.number, self._rows(caption, x), answer, self._rows(caption, t_B), mask)
        self.number += 1
        self.copies_seen += len(wanted)
        if wanted == self.all_copies:
            if self.shortcuts.null_every > 1:
                each = answers.chunk(len(wanted))
                self._differences = [each[self.with_caption] - answer for answer in each]
                self._answered = call.number
            return answers
        if not guided or self._differences is None:
            return torch.cat([answers] * len(self.all_copies))
        return torch.cat([answers - difference for difference in self._differences])

    def _guided(self, level: float) -> bool:
        interval = self.shortcuts.guidance_interval
        return interval is None or interval[0] <= level <= interval[1]

    def _call(self, wanted: tuple[int, ...], x: Tensor, t_B: Tensor, x_mask: Tensor | None) -> Tensor:
        if wanted not in self._inputs:
            self._inputs[wanted] = self._inputs[self.all_copies].of_copies(wanted)
        inputs, cache = self._inputs[wanted], self._caches.setdefault(wanted, ClipCache())
        if wanted != self.all_copies:
            x, t_B = self._rows(wanted, x), self._rows(wanted, t_B)
            x_mask = None if x_mask is None else self._rows(wanted, x_mask)
        text = inputs.text
        return self.forward(
            x, t_B, text.text_B1LC, mask=text.mask_BL, x_mask=x_mask, clip_cache=cache, **inputs.model_kwargs
        )

    def _rows(self, wanted: tuple[int, ...], rows: Tensor) -> Tensor:
        pieces = rows.chunk(len(self.all_copies))
        return torch.cat([pieces[copy] for copy in wanted])

    def summary(self) -> str:
        """The work that was left out, in words; "" for none."""
        parts = []
        whole = self.number * len(self.all_copies)
        if self.copies_seen < whole:
            parts.append(f"the model saw {self.copies_seen} of {whole} copies of the batch")
        if self.state is not None:
            counts = self.state.counts
            parts.append(f"{counts.skipped} of {counts.ran + counts.skipped} {counts.unit} skipped")
        return ", ".join(parts)


@contextmanager
def bound_denoiser(
    model: Denoiser,
    forward: Callable[..., Any],
    inputs: ModelInputs,
    shortcuts: Shortcuts,
    num_timesteps: int,
    calls: int | None,
    look: Look | None = None,
) -> Iterator[BoundDenoiser]:
    """A BoundDenoiser whose cache, if any, is installed on `model`. forward: calls the model, as an engine does."""
    with shortcuts.cache.installed(model) if shortcuts.cache is not None else nullcontext() as state:
        yield BoundDenoiser(forward, inputs, shortcuts, state, num_timesteps, calls, look)
