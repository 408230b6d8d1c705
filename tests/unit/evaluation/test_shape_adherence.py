from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.datasets.moving_shapes import UNCLEAR, Attributes, MovingShapes
from opensora.evaluation.psnr import psnr
from opensora.evaluation.shape_adherence import (
    NOTHING,
    accuracy,
    attributes_in_prompt,
    detect_attributes,
    ideal_clip,
)
from opensora.rng import Draw, generator


def clips_of(split: str, clips: int = 96) -> tuple[list[Tensor], list[str]]:
    data = MovingShapes(clips, num_frames=5, split=split)  # type: ignore[arg-type]
    samples = [data.clip(row, Draw(0, 0, row)) for row in range(clips)]
    return [sample.video_CTHW for sample in samples], [sample.caption for sample in samples]


def blurred(video_CTHW: Tensor) -> Tensor:
    tap = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (tap[:, None] * tap).expand(3, 1, 3, 3)
    frames = F.pad(video_CTHW.transpose(0, 1), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(frames, kernel, groups=3).transpose(0, 1)


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_drawn_clips_are_read_right(split: str) -> None:
    result = accuracy(*clips_of(split))
    assert (result.colour, result.shape, result.direction, result.all, result.clips) == (1, 1, 1, 1, 96)


def test_soft_and_noisy_clips_are_still_read() -> None:
    videos, prompts = clips_of("train")
    noise = generator(0, "pixel noise")
    videos = [blurred(video) + 0.05 * torch.randn(video.shape, generator=noise) for video in videos]
    result = accuracy(videos, prompts)
    assert min(result.colour, result.direction) == 1
    assert result.shape > 0.97


def test_wrong_prompts_score_at_chance() -> None:
    videos, prompts = clips_of("train")
    order = torch.randperm(len(prompts), generator=generator(0, "order")).tolist()
    result = accuracy(videos, [prompts[place] for place in order])
    assert result.colour < 0.35
    assert result.shape < 0.45
    assert result.direction < 0.45
    assert result.all < 0.15


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_each_attribute_is_judged_by_itself(split: str) -> None:
    videos, prompts = clips_of(split, 16)
    swap = {"left": "right", "right": "left", "up": "down", "down": "up"}
    wrong = [
        prompt.replace(attributes_in_prompt(prompt).direction, swap[attributes_in_prompt(prompt).direction])
        for prompt in prompts
    ]
    result = accuracy(videos, wrong)
    assert (result.colour, result.shape, result.direction, result.all) == (1, 1, 0, 0)


def test_nothing_is_read_from_noise_an_empty_or_a_still_clip() -> None:
    assert detect_attributes(torch.randn(3, 5, 32, 32, generator=generator(0, "noise")) * 0.5) == NOTHING
    assert detect_attributes(torch.full((3, 5, 32, 32), -1.0)) == NOTHING
    videos, prompts = clips_of("train", 1)
    still = videos[0][:, :1].expand(-1, 5, -1, -1)
    wanted = attributes_in_prompt(prompts[0])
    assert detect_attributes(still) == Attributes(wanted.color, wanted.shape, UNCLEAR)
    gone = videos[0].clone()
    gone[:, -1] = -1
    assert detect_attributes(gone) == NOTHING


def test_two_objects_are_no_shape() -> None:
    videos, _ = clips_of("train", 1)
    both = torch.maximum(videos[0], videos[0].flip(-1).flip(-2))
    assert detect_attributes(torch.cat([videos[0], both], dim=-1)).shape == UNCLEAR


def test_prompt_must_name_one_of_each() -> None:
    assert attributes_in_prompt("A red circle moving left.") == Attributes("red", "circle", "left")
    for prompt in ("a red circle", "a red blue circle moves left", ""):
        with pytest.raises(ValueError, match="exactly one"):
            attributes_in_prompt(prompt)
    with pytest.raises(ValueError, match="one prompt per clip"):
        accuracy([], [])


def test_the_ideal_clip_is_the_drawing_itself_and_far_for_every_wrong_attribute() -> None:
    clips, captions = clips_of("holdout", 32)
    for clip, caption in zip(clips, captions, strict=True):
        wanted = attributes_in_prompt(caption)
        right = psnr(clip[None], ideal_clip(clip, wanted)[None]).item()
        wrong = [
            replace(wanted, color="white" if wanted.color != "white" else "red"),
            replace(wanted, shape="cross" if wanted.shape != "cross" else "circle"),
            replace(wanted, direction={"left": "right", "right": "left", "up": "down", "down": "up"}[wanted.direction]),
        ]
        others = [psnr(clip[None], ideal_clip(clip, each)[None]).item() for each in wrong]
        assert right > 30
        assert max(others) < right - 8


def test_without_an_object_the_ideal_clip_is_a_drawing_in_the_middle() -> None:
    empty = torch.full((3, 9, 32, 32), -1.0)
    ideal = ideal_clip(empty, Attributes("red", "circle", "left"))
    assert detect_attributes(ideal) == Attributes("red", "circle", "left")
    middle = ideal[0].clamp(min=-1) + 1
    columns = (middle.sum(1) * (torch.arange(32) + 0.5)).sum(1) / middle.sum((1, 2))
    assert columns.mean() == pytest.approx(16, abs=0.1)
    assert columns[0] - columns[-1] == pytest.approx(0.24 * 32, abs=0.1)
