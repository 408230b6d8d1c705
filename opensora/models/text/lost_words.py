"""The words of a caption that its text encoder does not get: those that cleaning removes, and those beyond its length."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opensora.registry import TEXT_ENCODERS, class_of

KEEP_ALL = "use_text_preprocessing=False"
# Scores that are added to prompts and captions: words of the file, not of the author.
_SCORES = re.compile(r"(aesthetic score|motion score|camera motion):[^.]*(\.\d*)?\.?")


class Cut(NamedTuple):
    """A caption that is longer than the text encoder takes."""

    tokens: int  # of the caption
    limit: int  # tokens that the encoder takes
    words: str  # beyond them


def cleaner(text_encoder: Mapping[str, Any]) -> Callable[[str], str] | None:
    """The cleaning of the encoder of this config; None where it removes no words."""
    kind = class_of(TEXT_ENCODERS, text_encoder["type"])
    arguments = {name: value for name, value in text_encoder.items() if name != "type"}
    removes = getattr(kind, "removes_words", None)
    if removes is None or not removes(**arguments):
        return None
    return lambda caption: kind.normalize_caption(caption, **arguments)


def share_left(caption: str, cleaned: str) -> float:
    """The share of a caption's letters and digits that cleaning leaves; 1 where it has none. Scores do not count."""
    before = _count(_SCORES.sub("", caption.lower()))
    return min(1.0, _count(_SCORES.sub("", cleaned)) / before) if before else 1.0


def _count(text: str) -> int:
    return sum(map(str.isalnum, text))
