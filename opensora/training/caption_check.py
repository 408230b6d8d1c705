"""Captions of which the text encoder gets nothing, or not all: the first are dropped, the others counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from opensora.datasets.base import Dataset
from opensora.datasets.video import VideoTextDataset
from opensora.log import logger
from opensora.models.text.lost_words import KEEP_ALL, cleaner, share_left

COUNTED = 200  # captions whose tokens are counted
CLEANED = 20_000  # captions that are cleaned before the first step; further ones when they are read
NOTHING_LEFT = "the cleaning of captions leaves nothing of it"
# Cleaning removes no such word between blanks, unless it is part of markup or of an encoded text.
SURE = r"(?i)(^| )(a|an|the|is|are|in|of|with|and|at|by|from)( |$)"
UNSURE = r"(?i)[<&%]|click"


def drop_empty_captions(dataset: Dataset, text_encoder: Mapping[str, Any] | None) -> None:
    """Drop the rows whose captions are nothing but what the text encoder's cleaning removes."""
    clean = None if text_encoder is None else cleaner(text_encoder)
    if clean is None:
        return
    for part in (dataset, getattr(dataset, "videos", None), getattr(dataset, "images", None)):
        if isinstance(part, VideoTextDataset):
            _drop_empty(part, clean)


def _drop_empty(dataset: VideoTextDataset, clean: Callable[[str], str]) -> None:
    import pyarrow
    import pyarrow.compute as compute

    texts = dataset.texts()
    sure = compute.and_not(compute.match_substring_regex(texts, SURE), compute.match_substring_regex(texts, UNSURE))
    doubtful = np.flatnonzero(~np.asarray(sure))
    checked = doubtful[:CLEANED]
    captions: Sequence[str] = texts.take(pyarrow.array(checked)).to_pylist()
    shares = np.array([share_left(caption, clean(caption)) for caption in captions])

    def message(position: int) -> str:
        caption = captions[int(np.searchsorted(checked, position))]
        return f"{dataset.row_label(position)}: caption {caption[:60]!r}: {NOTHING_LEFT}; set text_encoder.{KEEP_ALL} to keep all"

    most = int(((shares > 0) & (shares < 0.5)).sum())
    if most:
        example = captions[int(np.flatnonzero((shares > 0) & (shares < 0.5))[0])]
        logger().warning(
            "%s: %d captions lose more than half of their letters in cleaning, for example %r, of which %r is left; "
            "text_encoder.%s keeps all", dataset.where, most, example[:200], clean(example)[:200], KEEP_ALL
        )  # fmt: skip
    dataset.drop("empty caption", checked[shares == 0], message)
    if len(doubtful) > CLEANED:
        dataset.caption_fault = lambda caption: NOTHING_LEFT if share_left(caption, clean(caption)) == 0 else None


def warn_of_long_captions(dataset: Dataset, encoder: object) -> None:
    """A warning with the number of captions, of `COUNTED` ones, that are longer than the encoder takes."""
    find_cut, captions_of = getattr(encoder, "cut", None), getattr(dataset, "captions", None)
    if find_cut is None or captions_of is None or not len(dataset):
        return
    rows = np.unique(np.linspace(0, len(dataset) - 1, COUNTED).astype(int))
    captions = list(dict.fromkeys(caption for row in rows for caption in captions_of(int(row))))
    cuts = [cut for caption in captions if (cut := find_cut(caption)) is not None]
    if cuts:
        longest = max(cuts, key=lambda cut: cut.tokens)
        logger().warning(
            "%s: %d of %d captions (%d%%) have more tokens than the %d that the text encoder takes; the longest, %d tokens, "
            "loses %r; shorten them, or raise text_encoder.model_max_length",
            dataset.where, len(cuts), len(captions), round(100 * len(cuts) / len(captions)), longest.limit, longest.tokens,
            longest.words[:200]
        )  # fmt: skip
