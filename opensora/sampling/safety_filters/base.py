"""The interface of a safety filter: prompts before anything is loaded, videos before anything is written.

Layout: T frames, H W rows and columns, C colors, bytes.
"""

from collections.abc import Iterable
from typing import Protocol

from opensora.datasets.decode import Frames
from opensora.errors import ConfigError, OpenSoraError
from opensora.types import SampleRequest


class SafetyFilter(Protocol):
    """A component of SAFETY_FILTERS; its constructor takes the keys of the config."""

    def refuse_prompt(self, prompt: str) -> str | None:
        """Why a prompt is refused, in a few words; None to let it pass."""
        ...

    def refuse_video(self, frames_THWC: Frames) -> str | None:
        """Why a video is refused, in a few words; None to let it pass."""
        ...


class VideoRefused(OpenSoraError):
    """A video that a safety filter keeps from being written."""


def check_prompts(safety_filter: SafetyFilter, requests: Iterable[SampleRequest]) -> None:
    """ConfigError for a prompt that is refused, as the user wrote it or as it was rewritten."""
    for prompt in dict.fromkeys(
        text for request in requests for text in (request.original_prompt, request.prompt) if text
    ):
        reason = safety_filter.refuse_prompt(prompt)
        if reason is not None:
            raise ConfigError(f"prompt {prompt!r}: the safety filter refuses it ({reason}); change the prompt")


def check_video(safety_filter: SafetyFilter, frames_THWC: Frames, request: SampleRequest) -> None:
    """Raise VideoRefused for a video that is refused."""
    reason = safety_filter.refuse_video(frames_THWC)
    if reason is not None:
        raise VideoRefused(
            f"prompt {request.prompt!r}: the safety filter refuses the video ({reason}); it is not written; change the prompt or "
            "the seed"
        )
