from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from opensora.datasets.frame_masks import CONDITIONS, KINDS, FrameConditions, FrameMasks
from opensora.errors import ConfigError


def draws(ratios: dict[str, float], frames: int, count: int = 400, version: Any = "1.3") -> Counter[str]:
    """Counts of the masks, written as 1 = noised."""
    masks, rng, generator = FrameMasks(ratios, version), Random(1), torch.Generator().manual_seed(1)
    return Counter("".join(str(int(v)) for v in masks.draw(frames, rng, generator)) for _ in range(count))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("quarter_head", {"01111111", "00111111"}),
        ("quarter_tail", {"11111110", "11111100"}),
        ("quarter_head_tail", {"01111110", "00111100"}),
        ("image_head", {"01111111"}),
        ("image_tail", {"11111110"}),
        ("image_head_tail", {"01111110"}),
        ("image_random", {"1" * i + "0" + "1" * (7 - i) for i in range(8)}),
        ("interpolate", {"01010101", "10101010"}),
        ("intepolate", {"01010101", "10101010"}),
        ("mask_image_head", {"01111111"}),
        ("mask_no", {"11111111"}),
        ("identity", {"11111111"}),
        (
            "quarter_random",
            {"1" * i + "0" + "1" * (7 - i) for i in range(8)} | {"1" * i + "00" + "1" * (6 - i) for i in range(7)},
        ),
    ],
)
def test_what_each_kind_gives(kind: str, expected: set[str]) -> None:
    assert set(draws({kind: 1.0}, 8)) == expected


def test_random_mask_keeps_share_and_one_frame() -> None:
    counts = draws({"random": 1.0}, 4, count=3000)
    assert "0000" not in counts
    share = sum(mask.count("1") * count for mask, count in counts.items()) / (4 * 3000)
    assert share == pytest.approx(0.5, abs=0.05)  # a little above, for the last frame that is put back
    assert draws({"random": 1.0}, 1) == {"1": 400}


def test_shares_are_kept_and_the_rest_trains_without_a_condition() -> None:
    counts = draws({"image_head": 0.25, "mask_image_tail": 0.125, "image_tail": 0.125}, 4, count=4000)
    shares = {mask: count / 4000 for mask, count in counts.items()}
    assert shares == {
        "0111": pytest.approx(0.25, abs=0.03),
        "1110": pytest.approx(0.25, abs=0.03),
        "1111": pytest.approx(0.5, abs=0.03),
    }


def test_short_clips() -> None:
    """A picture is never masked; a quarter of two frames is one; nothing to learn is not a mask, but was before 1.3."""
    assert all(set(draws({kind: 1.0}, 1, version="1.2")) == {"1"} for kind in KINDS)
    assert set(draws({"quarter_head": 1.0}, 2)) == {"01"}
    assert set(draws({"image_head_tail": 1.0}, 2)) == {"01"}
    assert set(draws({"image_head_tail": 1.0}, 2, version="1.2")) == {"00"}


def test_frame_conditions_keep_frames() -> None:
    rng = Random(0)
    frames = {name: FrameConditions({name: 1.0}).draw(5, rng) for name in CONDITIONS if name != "other"}
    assert frames == {
        "i2v_head": [0], "i2v_tail": [4], "i2v_loop": [0, 4], "v2v_head": [0, 1], "v2v_tail": [2, 3, 4], "none": []
    }  # fmt: skip
    other = FrameConditions({"other": 1.0})
    from_start, to_end = {(0,), (0, 1)}, {(1, 2, 3), (2, 3)}
    draws_of_four = Counter(tuple(other.draw(4, rng)) for _ in range(2000))
    assert set(draws_of_four) == from_start | to_end
    assert sum(draws_of_four[each] for each in from_start) / 2000 == pytest.approx(0.5, abs=0.04)
    assert {tuple(other.draw(2, rng)) for _ in range(100)} == {(0,), (1,)}
    assert [FrameConditions({name: 1.0}).draw(1, rng) for name in CONDITIONS] == [[]] * 7
    counts = Counter(len(FrameConditions({"i2v": 0.25}).draw(5, rng)) for _ in range(2000))
    assert counts[1] / 2000 == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    ("ratios", "version", "message"),
    [
        ({"quarter_heads": 0.1}, "1.3", r"mask_ratios.*'quarter_heads'.*quarter_random, .*identity"),
        ({"random": 1.5}, "1.3", r"random=1.5.*0 to 1"),
        ({"random": 0.7, "image_head": 0.7}, "1.3", r"1.4.*allowed: .*1"),
        ({"random": 0.2, "identity": 0.7}, "1.3", r"0.9.*allowed: .*1"),
        ({"mask_image_head": 0.2}, "1.1", r"0.2.*allowed: .*1"),
    ],
)
def test_bad_shares_are_errors(ratios: dict[str, float], version: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrameMasks(ratios, version)
