"""Prompts of which the text encoder gets less than was written: they are refused or warned of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opensora.errors import ConfigError
from opensora.log import logger
from opensora.models.text.lost_words import KEEP_ALL, cleaner, share_left
from opensora.sampling.prompt_syntax import text_of_loop
from opensora.sampling.reference_frames import num_loops
from opensora.types import SampleRequest

SHOWN = 200  # letters of a prompt in a message


def check_cleaning(requests: Sequence[SampleRequest], text_encoder: Mapping[str, Any]) -> None:
    """ConfigError for a prompt of which cleaning leaves no letter; a warning for one that loses more than half of them."""
    clean = cleaner(text_encoder)
    if clean is None:
        return
    for name, text in _texts(requests):
        cleaned = clean(text)
        share = share_left(text, cleaned)
        if share == 0:
            raise ConfigError(
                f"{name} {_short(text)}: the cleaning of captions leaves nothing of it: it removes Chinese characters, links, "
                f"file names, handles and ids; allowed: other words, or text_encoder.{KEEP_ALL} for a model trained so"
            )
        if share < 0.5:
            logger().warning(
                "%s %s: the cleaning of captions leaves %s; with text_encoder.%s all is kept",
                name, _short(text), _short(cleaned), KEEP_ALL
            )  # fmt: skip


def warn_of_cut_prompts(requests: Sequence[SampleRequest], encoder: object) -> None:
    """A warning for each prompt that is longer than the encoder takes, with the words that are cut off."""
    find_cut = getattr(encoder, "cut", None)
    if find_cut is None:
        return
    for name, text in _texts(requests):
        cut = find_cut(text)
        if cut is not None:
            logger().warning(
                "%s %s: has %d tokens, the text encoder takes %d; cut off: %s; shorten it",
                name, _short(text), cut.tokens, cut.limit, _short(cut.words)
            )  # fmt: skip


def _texts(requests: Sequence[SampleRequest]) -> Iterator[tuple[str, str]]:
    """Each text that is encoded, once, with its name in messages."""
    texts: dict[tuple[str, str], None] = {}
    for request in requests:
        for loop in range(num_loops(request)):
            texts["prompt", text_of_loop(request.prompt, loop)] = None
        if request.negative_prompt:
            texts["negative prompt", request.negative_prompt] = None
    return iter(texts)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
