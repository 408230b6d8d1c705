"""Lengths of clips by optimizer step."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from opensora.config import load
from opensora.errors import ConfigError
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.schema import TrainRun
from opensora.training.clip_lengths import clip_lengths
from tests.support.command import ROOT
from tests.unit.models.vae.test_open_sora_1_2 import v1_2

RUN = load(str(ROOT / "configs/vae/train/debug.py"), [], TrainRun).run


def lengths(vae: Any, num_frames: int, steps: int = 4000, **keys: Any) -> Counter[int]:
    plan = clip_lengths(replace(RUN, **keys), vae, num_frames, "c.py")
    assert plan is not None
    return Counter(plan.frames(step) for step in range(steps))


def test_images_have_their_share_and_all_lengths_come_equally_often() -> None:
    counts = lengths(v1_2(), 34, image_ratio=0.2, min_frames=2)
    assert counts[1] == pytest.approx(800, abs=80)  # three standard deviations
    assert set(counts) == set(range(1, 35))
    for frames in range(2, 35):
        assert counts[frames] == pytest.approx(3200 / 33, abs=40)
    assert counts == lengths(v1_2(), 34, image_ratio=0.2, min_frames=2)
    assert counts != lengths(v1_2(), 34, image_ratio=0.2, min_frames=2, seed=RUN.seed + 1)


def test_images_among_whole_clips() -> None:
    assert set(lengths(v1_2(), 17, image_ratio=0.5)) == {1, 17}


def test_lengths_are_those_the_autoencoder_holds() -> None:
    small = CausalVAEModel(hidden_size=4, hidden_size_mult=(1, 1, 1, 1), norm_groups=2)
    assert set(lengths(small, 17, min_frames=4)) == {5, 9, 13, 17}


def test_whole_clips_by_default() -> None:
    assert clip_lengths(RUN, v1_2(), 17, "c.py") is None


def test_longer_than_the_clips() -> None:
    with pytest.raises(ConfigError, match=r"c\.py: key 'min_frames': found 18; allowed: up to 17"):
        clip_lengths(replace(RUN, min_frames=18), v1_2(), 17, "c.py")
