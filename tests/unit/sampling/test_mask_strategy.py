from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.errors import BadClip, ConfigError
from opensora.sampling.mask_strategy import (
    FramePlacement,
    check_pastes,
    continue_from_previous,
    frames_of_latents,
    nearest_multiple,
    parse_strategy,
    paste_references,
    read_reference,
)
from tests.support.media_files import frame_number, write_picture, write_video


def latents(frames: int, first: float) -> torch.Tensor:
    return torch.arange(first, first + frames).view(1, -1, 1, 1)


def pasted(strategy: str, loop: int = 0, align: int | None = None) -> tuple[list[float], list[float]]:
    z, mask = paste_references(
        torch.zeros(1, 6, 1, 1), [latents(3, 10.0), latents(6, 20.0)], parse_strategy(strategy), loop, align
    )
    return z.flatten().tolist(), mask.tolist()


def test_a_strategy_names_what_goes_where() -> None:
    assert parse_strategy("") == []
    assert parse_strategy("0;1,2,-3,4,5,0.5") == [FramePlacement(), FramePlacement(1, 2, -3, 4, 5, 0.5)]
    assert pasted("0") == ([10, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])
    assert pasted("0,1,-2,1,2,0.25;0,0,0,-1") == ([0, 24, 25, 0, 0, 10], [1, 0.25, 0.25, 1, 1, 0])
    assert pasted("1,0") == ([0] * 6, [1] * 6)
    assert pasted("1,0", loop=1) == ([10, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])
    assert pasted("0,0,1,0,9") == ([11, 12, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1])
    assert pasted("0,1,0,0,3,1;0,1,1,1,1,0") == ([0, 21, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1])  # 1 is made anew, from noise
    assert pasted("0,1,2,2,1", align=3) == ([0, 0, 0, 23, 0, 0], [1, 1, 1, 0, 1, 1])


def test_the_noise_given_is_not_changed() -> None:
    noise = torch.zeros(1, 2, 1, 1)
    paste_references(noise, [latents(1, 5.0)], [FramePlacement()])
    assert not noise.any()


def test_multiples() -> None:
    assert [nearest_multiple(value, 4, 12) for value in range(12)] == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    "text", ["a", "0,,1", ";0", "0;", "0,0,0,0,1,0,0", "0.5", "-1", "0,-1", "0,0,0,0,0", "0,0,0,0,1,2"]
)
def test_unreadable_strategies_are_errors(text: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.txt: .*allowed: "):
        parse_strategy(text, "p.txt")


def test_absent_reference_or_frame_is_error() -> None:
    check_pastes(parse_strategy("0,1,-6,5,1;1,9"), [3, 6], 6)
    with pytest.raises(ConfigError, match=r"reference 2 .*loop 0.* 2"):
        check_pastes(parse_strategy("0,2"), [3, 6], 6)
    with pytest.raises(ConfigError, match=r"start 3 .*reference 0.*3 latent frames.*-3 to 2"):
        check_pastes(parse_strategy("0,0,3"), [3, 6], 6)
    with pytest.raises(ConfigError, match=r"start -7 .*6 latent frames"):
        check_pastes(parse_strategy("0,0,0,-7"), [3, 6], 6)


def test_continuing() -> None:
    assert continue_from_previous(2, 1, 5, 0.25) == parse_strategy("2,1,-5,0,5,0.25")[0]
    assert [frames_of_latents(n, lambda frames: (frames - 1) // 4 + 1) for n in (1, 2, 3)] == [1, 5, 9]


def test_references_are_read_at_the_size_of_the_clip(tmp_path: Path) -> None:
    """A picture of 32x64 covers 16x24 at 16x32, of which the middle is kept; videos keep all frames."""
    picture = read_reference(write_picture(tmp_path / "a.png", 0b10110100), 16, 24)
    assert picture.shape == (3, 1, 16, 24)
    assert picture.min() == pytest.approx(40 / 127.5 - 1, abs=0.05)
    assert picture.max() == pytest.approx(190 / 127.5 - 1, abs=0.05)
    video = read_reference(write_video(tmp_path / "a.mp4", 5), 16, 32)
    assert video.shape == (3, 5, 16, 32)
    shown = ((video + 1) * 127.5).byte().permute(1, 2, 3, 0).numpy()
    assert [frame_number(np.ascontiguousarray(frame)) for frame in shown] == [0, 1, 2, 3, 4]
    with pytest.raises(BadClip, match="no such file"):
        read_reference(str(tmp_path / "none.png"), 16, 16)
