"""Adherence of drawn clips to their own and to others' prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.moving_objects import MovingObjects, ObjectAttributes
from opensora.datasets.moving_shapes import MovingShapes
from opensora.errors import DataError
from opensora.evaluation.metrics.adherence import ObjectAdherence, ShapeAdherence
from opensora.rng import Draw
from tests.support.evaluated_videos import evaluated, noise, values

CPU = torch.device("cpu")


def test_shares_of_right_and_of_swapped_prompts(tmp_path: Path) -> None:
    data = MovingShapes(clips=4, num_frames=9, image_size=(32, 32))
    clips = [data.clip(row, Draw(3, 0, row)) for row in range(4)]
    pixels = [((clip.video_CTHW + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy() for clip in clips]
    videos = [
        evaluated(tmp_path / f"{n}", list(np.ascontiguousarray(pixels[n])), prompt=clips[n].caption) for n in range(4)
    ]
    right = values(ShapeAdherence().measure(videos, [], CPU))
    assert {name: right[name] for name in ("color", "shape", "direction", "adherence")} == {
        "color": 1, "shape": 1, "direction": 1, "adherence": 1,
    }  # fmt: skip
    assert right["drawing_psnr"] > 20
    words = clips[0].caption.split()
    other = next(name for name in ("red", "green") if name not in words)
    color = next(word for word in words if word in ("red", "green", "blue", "yellow", "white", "magenta", "cyan"))
    swapped = evaluated(tmp_path / "s", list(pixels[0]), prompt=clips[0].caption.replace(color, other))
    result = ShapeAdherence().measure([videos[0], swapped], [], CPU)
    by_name = {figure.name: figure for figure in result.figures}
    assert by_name["color"].per_video == (1, 0)
    assert (by_name["shape"].value, by_name["adherence"].value) == (1, 0.5)
    assert by_name["drawing_psnr"].per_video[1] < by_name["drawing_psnr"].per_video[0]


@pytest.mark.parametrize("prompt", [None, "a red sea"])
def test_a_prompt_without_the_three_attributes_is_a_sentence(prompt: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mkv: prompt .*exactly one color"):
        ShapeAdherence().measure([evaluated(tmp_path / "a", noise(0), prompt=prompt)], [], CPU)


def test_shares_of_right_and_of_swapped_objects(tmp_path: Path) -> None:
    data = MovingObjects(num_frames=5)
    row = data.combinations.index(ObjectAttributes("crab", "grow", "sea", "slowly"))
    clip = data.clip(row, Draw(0, 0, 0))
    frames = list(np.ascontiguousarray(((clip.video_CTHW + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()))
    prompts = ["a crab grows slowly on the sea", "a crab grows quickly on the sea", "a crab rotates slowly at night"]
    videos = [evaluated(tmp_path / str(n), frames, prompt=prompt) for n, prompt in enumerate(prompts)]
    assert values(ObjectAdherence().measure(videos[:1], [], CPU)) == dict.fromkeys(
        ("object", "motion", "background", "speed", "pair", "adherence"), 1
    )
    by_name = {figure.name: figure.per_video for figure in ObjectAdherence().measure(videos, [], CPU).figures}
    assert by_name == {
        "object": (1, 1, 1),
        "motion": (1, 1, 0),
        "background": (1, 1, 0),
        "speed": (1, 0, 1),
        "pair": (1, 1, 0),
        "adherence": (1, 0, 0),
    }


@pytest.mark.parametrize("prompt", [None, "a red circle moves left"])
def test_a_prompt_without_the_four_attributes_is_a_sentence(prompt: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mkv: prompt .*exactly one object .*; remove the metric, or the file"):
        ObjectAdherence().measure([evaluated(tmp_path / "a", noise(0), prompt=prompt)], [], CPU)
