"""The syntax of prompts, as in Open-Sora 1.2: words, scores, a text per loop, references as JSON.

a cat runs. aesthetic score: 6.5. camera motion: pan left.
|0|a beach by day|2|the same beach at night
a cat runs {"reference_path": "cat.png", "mask_strategy": "0"}
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from opensora.errors import ConfigError

_LOOP = re.compile(r"\|(\d+)\|")
_EXTRAS = ("reference_path", "mask_strategy")


class PromptParts(NamedTuple):
    """A prompt without its JSON."""

    text: str
    reference_path: str
    mask_strategy: str


def add_scores(text: str, aes: float | None = None, flow: float | None = None, camera_motion: str | None = None) -> str:
    """The prompt with the scores that captions were trained with; one that names a score already keeps its own."""
    if aes is not None and "aesthetic score:" not in text:
        text = f"{text} aesthetic score: {aes:.1f}."
    if flow is not None and "motion score:" not in text:
        text = f"{text} motion score: {flow:.1f}."
    if camera_motion is not None and "camera motion:" not in text:
        text = f"{text} camera motion: {camera_motion}."
    return text


def text_of_loop(text: str, loop: int) -> str:
    """The words of one loop, counted from 0, of "|0|first|2|from the third on"; other prompts are the same in all."""
    texts = {number: words for number, words in _segments(text) if number <= loop}
    return texts[max(texts)] if texts else text


def map_loops(text: str, change: Callable[[str], str]) -> str:
    """The prompt with `change` applied to the words of every loop."""
    segments = _segments(text)
    return "".join(f"|{number}|{change(words)}" for number, words in segments) if segments else change(text)


def words_of(text: str) -> list[str]:
    """The words of every loop, or those of a prompt that is the same in all."""
    return [words for _, words in _segments(text)] or [text]


def last_loop(text: str) -> int:
    """The last loop, counted from 0, that the prompt has words of its own for."""
    return max((number for number, _ in _segments(text)), default=0)


def split_json(text: str, where: str) -> PromptParts:
    """Take `{"reference_path": ..., "mask_strategy": ...}` off the end; ConfigError when it is not readable.

    Braces that hold neither word are a part of the prompt.
    """
    start = text.find("{")
    if start < 0 or not text.endswith("}") or not any(f'"{name}"' in text[start:] for name in _EXTRAS):
        return PromptParts(text, "", "")
    try:
        extras = json.loads(text[start:], object_pairs_hook=_different)
    except ValueError as error:
        raise ConfigError(f"{where}: {text[start:]!r} is not JSON ({error}); correct it or leave it out") from None
    for name, value in extras.items():
        if name not in _EXTRAS or not isinstance(value, str):
            raise ConfigError(
                f"{where}: {name!r}: {value!r} in the prompt's JSON; allowed: {' and '.join(_EXTRAS)}, each a string; "
                "correct it or leave it out"
            )
    return PromptParts(text[:start].strip(), *(extras.get(name, "") for name in _EXTRAS))


def _different(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; ValueError when a name comes twice, of which one value would be lost."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _segments(text: str) -> list[tuple[int, str]]:
    if not text.startswith("|0|"):
        return []
    _, *parts = _LOOP.split(text)
    return [(int(number), words.strip()) for number, words in zip(parts[::2], parts[1::2], strict=True)]
