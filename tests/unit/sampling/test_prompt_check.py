"""Prompts that lose words on their way to the text encoder."""

import logging

import pytest

from opensora.errors import ConfigError
from opensora.models.text.lost_words import Cut
from opensora.sampling.prompt_check import check_cleaning, warn_of_cut_prompts
from opensora.types import VideoConditioning
from tests.support.fake_sampler import request

T5 = {"type": "t5", "from_pretrained": "google/t5-v1_1-small"}


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "城市的夜晚"}, "^prompt '城市的夜晚'.*use_text_preprocessing=False"),
        ({"negative_prompt": "模糊"}, "^negative prompt '模糊'"),
        ({"prompt": "|0|a dog|1|IMG_1234.mp4", "conditioning": VideoConditioning(loop=2)}, "^prompt 'IMG_1234.mp4'"),
    ],
)
def test_prompts_of_which_cleaning_leaves_nothing(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_cleaning([request("a dog"), request(**changes)], T5)
    check_cleaning([request(**changes)], {**T5, "use_text_preprocessing": False})


def test_prompts_that_lose_most_letters(messages: pytest.LogCaptureFixture) -> None:
    check_cleaning(
        [request("a dog runs"), request("城市的夜晚里 a dog", repeat=0), request("城市的夜晚里 a dog", repeat=1)], T5
    )
    [record] = messages.records
    assert "the cleaning of captions leaves 'a dog'" in record.message


class Letters:
    """An encoder with a token for each letter, that takes five."""

    def cut(self, caption: str) -> Cut | None:
        return Cut(len(caption), 5, caption[5:]) if len(caption) > 5 else None


def test_prompts_that_are_too_long(messages: pytest.LogCaptureFixture) -> None:
    loops = request("|0|short|1|longer text", conditioning=VideoConditioning(loop=2))
    warn_of_cut_prompts([request("fits"), loops, request("fits", negative_prompt="negative")], Letters())
    assert [record.message for record in messages.records] == [
        "prompt 'longer text': has 11 tokens, the text encoder takes 5; cut off: 'r text'; shorten it",
        "negative prompt 'negative': has 8 tokens, the text encoder takes 5; cut off: 'ive'; shorten it",
    ]
    warn_of_cut_prompts([loops], object())  # classes have no length
    assert len(messages.records) == 2
