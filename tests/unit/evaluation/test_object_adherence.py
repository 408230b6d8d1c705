from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.datasets.moving_objects import MovingObjects, ObjectAttributes, Path, draw_background, render
from opensora.datasets.moving_shapes import UNCLEAR
from opensora.datasets.object_drawings import object_drawings
from opensora.evaluation.object_adherence import detect_object_attributes, object_attributes_in_prompt
from opensora.rng import Draw, generator

KINDS = ("object", "motion", "background", "speed")


def shares(
    split: str, clips: int, change: Callable[[Tensor], Tensor] = lambda clip: clip, frames: int = 9
) -> list[float]:
    """Share of clips whose object, motion, background and speed are read right."""
    data = MovingObjects(num_frames=frames, split=split)  # type: ignore[arg-type]
    right = [0] * len(KINDS)
    for row in range(clips):
        shown = detect_object_attributes(change(data.clip(row, Draw(0, 0, row)).video_CTHW))
        wanted = data.attributes(row)
        right = [
            count + (getattr(shown, kind) == getattr(wanted, kind)) for count, kind in zip(right, KINDS, strict=True)
        ]
    return [count / clips for count in right]


def soft_and_noisy(video_CTHW: Tensor) -> Tensor:
    """Half the size and back, with noise, as a small autoencoder may leave it."""
    frames = video_CTHW.transpose(0, 1)
    half = F.interpolate(frames, scale_factor=0.5, mode="area")
    soft = F.interpolate(half, scale_factor=2.0, mode="bilinear").transpose(0, 1)
    return soft + 0.05 * torch.randn(soft.shape, generator=generator(0, "pixel noise"))


@pytest.mark.parametrize(("split", "frames"), [("train", 9), ("holdout", 5)])
def test_drawn_clips_are_read_right(split: str, frames: int) -> None:
    assert shares(split, 48, frames=frames) == [1, 1, 1, 1]


def test_soft_noisy_and_shifted_clips_are_still_read() -> None:
    assert min(shares("train", 64, soft_and_noisy)) >= 0.99
    tint = torch.tensor([0.2, -0.16, 0.1])[:, None, None, None]
    assert min(shares("holdout", 16, lambda clip: clip * 0.95 + tint)) == 1


def test_each_attribute_is_read_by_itself() -> None:
    data = MovingObjects()
    row = data.combinations.index(ObjectAttributes("lobster", "left", "sea", "quickly"))
    video = data.clip(row, Draw(0, 0, 1)).video_CTHW
    assert detect_object_attributes(video) == data.attributes(row)
    assert detect_object_attributes(video.flip(1)) == ObjectAttributes("lobster", "right", "sea", "quickly")
    half_as_far = video[:, [0, 0, 1, 1, 2, 2, 3, 3, 4]]
    assert detect_object_attributes(half_as_far) == ObjectAttributes("lobster", "left", "sea", "slowly")
    there_and_back = video[:, [0, 2, 4, 6, 8, 6, 4, 2, 0]]
    assert detect_object_attributes(there_and_back) == ObjectAttributes("lobster", UNCLEAR, "sea", UNCLEAR)
    still = video[:, :1].expand(-1, 9, -1, -1)
    for unmoved in (still, still[:, :1]):
        assert detect_object_attributes(unmoved) == ObjectAttributes("lobster", UNCLEAR, "sea", UNCLEAR)
    upside_down = detect_object_attributes(video.flip(2, 3))
    assert (upside_down.object, upside_down.motion, upside_down.speed) == ("lobster", "right", "quickly")


def test_two_motions_at_once_are_none() -> None:
    time_T = np.linspace(0, 1, 9)
    both = Path(0.18 * time_T, 0 * time_T, 1.55**time_T, 0 * time_T)
    what = ObjectAttributes("lobster", "right", "sea", "quickly")
    video = render(object_drawings(), what, (64, 64), (26.0, 32.0), 14.0, both)
    assert detect_object_attributes(video) == ObjectAttributes("lobster", UNCLEAR, "sea", UNCLEAR)


def test_nothing_is_read_where_nothing_is() -> None:
    noise = torch.randn(3, 5, 64, 64, generator=generator(0, "noise")) * 0.5
    assert detect_object_attributes(noise) == ObjectAttributes(*[UNCLEAR] * 4)
    empty = (draw_background("sea", (64, 64)) * 2 - 1)[:, None].expand(-1, 5, -1, -1)
    assert detect_object_attributes(empty) == ObjectAttributes(UNCLEAR, UNCLEAR, "sea", UNCLEAR)
    data = MovingObjects(num_frames=5)
    gone = data.clip(0, Draw(0, 0, 0)).video_CTHW.clone()
    gone[:, -1] = draw_background(data.attributes(0).background, (64, 64)) * 2 - 1
    assert detect_object_attributes(gone).object == UNCLEAR


def test_two_objects_and_a_plain_square_are_no_drawing() -> None:
    empty = draw_background("sea", (64, 64))[:, None].repeat(1, 5, 1, 1) * 2 - 1
    square = empty.clone()
    square[:, :, 20:44, 20:44] = 1
    assert detect_object_attributes(square).object == UNCLEAR
    data = MovingObjects(num_frames=5)
    row = next(row for row in range(99) if data.attributes(row).background == "sea")
    video = data.clip(row, Draw(0, 0, 0)).video_CTHW
    both = torch.cat([video, video.flip(1)], dim=3)[..., ::2]
    assert detect_object_attributes(both).object == UNCLEAR


def test_every_caption_names_its_attributes() -> None:
    data = MovingObjects(split="holdout")
    for row in range(0, 1280, 20):
        assert {object_attributes_in_prompt(caption) for caption in data.captions(row)} == {data.attributes(row)}


@pytest.mark.parametrize("prompt", ["", "a crab moves left on snow", "a crab and a bat move left slowly on snow"])
def test_prompt_must_name_one_of_each(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one object of airplane, .*, worm .* one motion of left, right"):
        object_attributes_in_prompt(prompt)
