"""The part of a file that a row names."""

from fractions import Fraction

import pytest

from opensora.datasets.decode import VideoInfo
from opensora.errors import BadClip
from tools.score.clip_span import clip_span

INFO = VideoInfo("a.mp4", 100, Fraction(25), 64, 64)


@pytest.mark.parametrize(
    ("cells", "span"),
    [
        ({}, (0, 100)),
        ({"start": "", "end": None}, (0, 100)),
        ({"start": 1.0, "end": "2.0"}, (25, 50)),
        ({"start": 0.9999, "end": 9}, (25, 100)),
        ({"start_frame": 10, "end_frame": "20", "start": 3.0, "end": 3.5}, (10, 20)),
        ({"end": 0.01}, (0, 1)),
    ],
)
def test_span(cells: dict[str, object], span: tuple[int, int]) -> None:
    assert clip_span({"path": "a.mp4", **cells}, INFO) == span


@pytest.mark.parametrize(
    "cells", [{"start": 4.0}, {"start": 2, "end": 1}, {"start": -1}, {"start": "x"}, {"end": "inf"}]
)
def test_a_span_without_frames_is_a_sentence(cells: dict[str, object]) -> None:
    with pytest.raises(BadClip, match=r"^a\.mp4: .* needed; correct "):
        clip_span({"path": "a.mp4", **cells}, INFO)
