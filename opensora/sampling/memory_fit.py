"""Fit a sampling run into `max_memory`: planning estimates, this describes the networks and requests of a run to it."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from opensora.interfaces import Scheduler, TextEncoder
from opensora.log import logger
from opensora.models.offload import HOST
from opensora.planning.sampling_memory import Choice, SamplingMemory, choose, memory_size, summary
from opensora.schema import SampleRun
from opensora.types import DTYPES, SampleRequest

KEY = "key 'max_memory'"


class MemoryFit:
    """Chooses settings for runs on one device; equal runs, such as the requests of a page, are estimated once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chosen: dict[str, Choice] = {}

    def choose(
        self,
        run: SampleRun,
        model: Mapping[str, Any],
        vae: Mapping[str, Any],
        text_encoder: TextEncoder | None,
        scheduler: Scheduler,
        requests: Sequence[SampleRequest],
    ) -> Choice:
        """The least change that makes the largest request fit; logs it. Raises ConfigError when nothing does.

        model: complete config. text_encoder: None where it is not loaded.
        """
        assert run.max_memory is not None
        limit = memory_size(run.max_memory, KEY)
        references = any(request.conditioning is not None for request in requests)
        memory = SamplingMemory(
            model,
            vae,
            text_encoder,
            max({(request.num_frames, request.height, request.width) for request in requests}, key=prod),
            copies=_copies(model, scheduler, references),
            dtype=DTYPES[run.dtype],
            references=references,
            on_host=self._device == HOST,
        )
        start = Choice(run.model_cpu_offload and not memory.on_host, bool(vae.get("use_tiling", False)))
        key = repr(
            (limit, memory.model, memory.vae, text_encoder is None, memory.size, memory.copies, run.dtype, start)
        )
        if key not in self._chosen:
            self._chosen[key], peaks = choose(memory, limit, start)
            logger().info("%s", summary(memory, limit, self._chosen[key], peaks))
        return self._chosen[key]


def _copies(model: Mapping[str, Any], scheduler: Scheduler, references: bool) -> int:
    """Copies of a video that go through the model at once, for guidance."""
    if references and model.get("conditioned") and (scheduler.cfg_scale != 1 or scheduler.image_cfg_scale != 1):
        return 3
    return 1 if scheduler.cfg_scale == 1 else 2
