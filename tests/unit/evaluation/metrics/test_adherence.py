"""Adherence of drawn clips to their own and to others' prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.moving_shapes import MovingShapes
from opensora.errors import DataError
from opensora.evaluation.metrics.adherence import ShapeAdherence
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
