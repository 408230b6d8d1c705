"""Guidance in an interval and reuse of the answer without the caption, on a model whose answers are known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.sampling.bound_denoiser import BoundDenoiser
from opensora.sampling.model_inputs import ModelInputs
from opensora.sampling.shortcuts import Shortcuts
from opensora.types import EncodedText

CAPTION, NULL = 3.0, 1.0


class Model:
    """Answers text * level + x, and remembers the text of each call."""

    def __init__(self) -> None:
        self.texts: list[list[float]] = []

    def __call__(self, x: Tensor, t_B: Tensor, y: Tensor, mask: Tensor, x_mask: Tensor | None, **more: Any) -> Tensor:
        assert len(x) == len(t_B) == len(y) == len(mask) == len(more["fps"]) == len(more["frames"])
        assert [[value] for value in more["fps"].tolist()] == more["frames"]
        assert x_mask is None or len(x_mask) == len(x)
        self.texts.append(y.flatten().tolist())
        return (y.flatten() * t_B / 1000).view(-1, 1, 1, 1, 1) + x


def make(shortcuts: Shortcuts, copies: str = "cond,null", calls: int = 9) -> tuple[Model, BoundDenoiser]:
    """Two videos."""
    words = tuple(copies.split(","))
    text = torch.tensor([{"cond": CAPTION, "null": NULL}[word] for word in words]).repeat_interleave(2)
    numbers = torch.arange(2.0 * len(words))
    inputs = ModelInputs(
        torch.zeros(2, 1, 1, 1, 1),
        EncodedText(text.view(-1, 1, 1, 1), torch.ones(len(text), 1)),
        {"fps": numbers, "frames": [[number] for number in numbers.tolist()]},
        {},
        words,
    )
    model = Model()
    return model, BoundDenoiser(model, inputs, shortcuts, None, 1000, calls)


def call(denoise: BoundDenoiser, level: float, x: float = 0.0) -> list[float]:
    copies = len(denoise.all_copies)
    mask = torch.ones(2 * copies, 1, dtype=torch.bool)
    answers = denoise(torch.full((2 * copies, 1, 1, 1, 1), x), torch.full((2 * copies,), 1000 * level), mask)
    return answers.flatten().tolist()


@pytest.mark.parametrize("copies", ["cond,null", "null,cond", "cond,null,null"])
def test_guidance_acts_within_its_interval_only(copies: str) -> None:
    model, denoise = make(Shortcuts(guidance_interval=(0.3, 0.6)), copies)
    words = {"cond": CAPTION, "null": NULL}
    whole = [words[word] for word in copies.split(",") for _ in range(2)]
    for level, guided in ((0.9, False), (0.6, True), (0.5, True), (0.3, True), (0.1, False)):
        answers = call(denoise, level, x=0.25)
        texts = whole if guided else [CAPTION] * len(whole)
        assert answers == pytest.approx([level * text + 0.25 for text in texts])
        assert model.texts[-1] == (whole if guided else [CAPTION] * 2)
    assert denoise.copies_seen == 3 * len(copies.split(",")) + 2
    assert (
        denoise.summary() == f"the model saw {denoise.copies_seen} of {5 * len(copies.split(','))} copies of the batch"
    )


@pytest.mark.parametrize("copies", ["cond,null", "null,cond", "cond,null,null"])
def test_the_difference_of_the_caption_serves_several_calls(copies: str) -> None:
    model, denoise = make(Shortcuts(null_every=3), copies)
    order = copies.split(",")
    for number, level in enumerate((1.0, 0.9, 0.8, 0.7, 0.6)):
        answers = call(denoise, level)
        answered = 1.0 if number < 3 else 0.7  # the level of the last call with all copies
        null = CAPTION * level - (CAPTION - NULL) * answered
        assert answers == pytest.approx([{"cond": CAPTION * level, "null": null}[word] for word in order for _ in "ab"])
    assert [len(texts) for texts in model.texts] == [2 * len(order), 2, 2, 2 * len(order), 2]


def test_interval_and_reuse_together() -> None:
    """Guidance begins with an answer of its own, whatever was left out before."""
    model, denoise = make(Shortcuts(guidance_interval=(0.0, 0.5), null_every=2))
    for level in (0.9, 0.5, 0.4, 0.3, 0.2):
        call(denoise, level)
    assert [len(texts) for texts in model.texts] == [2, 4, 2, 4, 2]


def test_without_guidance_there_is_nothing_to_leave_out() -> None:
    _, denoise = make(Shortcuts(guidance_interval=(0.4, 0.6), null_every=2), "cond")
    assert call(denoise, 0.9) == pytest.approx([0.9 * CAPTION] * 2)
    assert call(denoise, 0.5) == pytest.approx([0.5 * CAPTION] * 2)
    assert denoise.summary() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_interval": (0.6, 0.3)}, r"guidance_interval.*\(0.6, 0.3\).*lowest and the highest"),
        ({"guidance_interval": (0.6,)}, "guidance_interval"),
        ({"null_every": 0}, "null_every.*1 or more"),
    ],
)
def test_wrong_shortcuts_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shortcuts(**arguments)
