"""Captions that the text encoder does not get: dropped, or counted."""

import logging
from pathlib import Path

import pytest

from opensora.datasets.video import VideoTextDataset
from opensora.errors import BadClip
from opensora.models.text.lost_words import Cut
from opensora.rng import Draw
from opensora.training import caption_check
from opensora.training.caption_check import drop_empty_captions, warn_of_long_captions

T5 = {"type": "t5", "from_pretrained": "google/t5-v1_1-small"}
CAPTIONS = [
    "一只猫",
    "a dog runs",
    "<a of b>",
    "free shipping",
    "城市的夜晚里 dog",
    "click on the dog",
    "@a %23123",
    "猫 in the rain",
]
KEPT = ["a dog runs", "城市的夜晚里 dog", "click on the dog", "猫 in the rain"]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    return caplog


def data(folder: Path) -> VideoTextDataset:
    path = folder / "clips.csv"
    path.write_text("path,text\n" + "".join(f"{n}.mp4,{caption}\n" for n, caption in enumerate(CAPTIONS)))
    return VideoTextDataset(str(path), num_frames=5, image_size=(16, 16))


def test_captions_of_which_cleaning_leaves_nothing(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    clips = data(tmp_path)
    drop_empty_captions(clips, T5)
    assert clips.texts().to_pylist() == KEPT
    report = clips.report()
    assert (report.rows, report.kept, report.count("empty caption")) == (8, 4, 4)
    assert "clips.csv:2: caption '一只猫'" in report.dropped["empty caption"][0]
    assert "use_text_preprocessing=False" in report.dropped["empty caption"][0]
    [record] = messages.records
    assert "2 captions lose more than half of their letters in cleaning" in record.message
    assert clips.manifest_index(1) == 4


def test_encoders_that_keep_all_words_keep_all_rows(tmp_path: Path) -> None:
    clips = data(tmp_path)
    for config in (None, {"type": "minilm"}, {**T5, "use_text_preprocessing": False}):
        drop_empty_captions(clips, config)
    assert len(clips) == len(CAPTIONS)


def test_captions_beyond_those_that_are_cleaned_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked when they are read, so that a start does not take hours."""
    monkeypatch.setattr(caption_check, "CLEANED", 1)
    clips = data(tmp_path)
    drop_empty_captions(clips, T5)
    assert clips.texts().to_pylist() == CAPTIONS[1:]
    with pytest.raises(BadClip, match=r"clips\.csv:4: caption '<a of b>': the cleaning of captions leaves nothing"):
        clips.clip(1, Draw(0, 0, 0))
    with pytest.raises(BadClip, match="no such file"):
        clips.clip(0, Draw(0, 0, 0))


class Letters:
    def cut(self, caption: str) -> Cut | None:
        return Cut(len(caption), 10, caption[10:]) if len(caption) > 10 else None


def test_long_captions_are_counted(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    warn_of_long_captions(data(tmp_path), Letters())
    [record] = messages.records
    assert "3 of 8 captions (38%) have more tokens than the 10" in record.message
    assert "the longest, 16 tokens, loses 'he dog'" in record.message
    warn_of_long_captions(data(tmp_path), object())
    assert len(messages.records) == 1
