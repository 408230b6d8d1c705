from collections import Counter
from typing import Any

import numpy as np
import pytest

from opensora.datasets.buckets import DROPPED, Bucket, Buckets
from opensora.errors import ConfigError

CONFIG = {"144p": {1: (1.0, 32), 16: (1.0, 8), 32: (1.0, 4)}, "480p": {1: (0.25, 4), 32: ((0.5, 0.5), 1)}}


def shares(buckets: Buckets, frames: int, height: int = 480, width: int = 854) -> dict[Any, float]:
    counts = Counter(buckets.choose(frames, height, width, seed=seed) for seed in range(0, 4000 * 10, 10))
    return {bucket and bucket[:2]: count / 4000 for bucket, count in counts.items()}


def test_large_resolutions_and_long_clips_come_first() -> None:
    buckets = Buckets(CONFIG)
    assert list(buckets.pairs) == [("480p", 32), ("480p", 1), ("144p", 32), ("144p", 16), ("144p", 1)]
    assert len(buckets) == 5 * 17
    assert buckets.row_seed(7, 3, 2) == 7 + 3 + 2 * 85


def test_chances_are_kept() -> None:
    """A quarter of the pictures stays large; of the videos a half is tried at all, and half of those stays."""
    buckets = Buckets(CONFIG)
    assert shares(buckets, 1) == {
        ("480p", 1): pytest.approx(0.25, abs=0.03),
        ("144p", 1): pytest.approx(0.75, abs=0.03),
    }
    assert shares(buckets, 40) == {
        ("480p", 32): pytest.approx(0.25, abs=0.03),
        ("144p", 32): pytest.approx(0.75, abs=0.03),
    }


def test_a_length_needs_one_frame_more_and_small_clips_are_not_blown_up() -> None:
    buckets = Buckets({"144p": CONFIG["144p"]})
    assert buckets.choose(16, 144, 256, seed=0) is None
    assert buckets.choose(17, 144, 256, seed=0) == Bucket("144p", 16, "0.56")
    assert buckets.choose(33, 144, 256, seed=0) == ("144p", 32, "0.56")
    assert buckets.choose(33, 144, 256, frame_interval=2, seed=0) == ("144p", 16, "0.56")
    assert buckets.choose(33, 128, 230, seed=0) is None  # 0.799 of the pixels
    assert buckets.choose(33, 128, 231, seed=0) is not None


def test_size_and_batch_size() -> None:
    buckets = Buckets({"144p": {1: (0.0, None), 16: (1.0, 8)}})
    assert buckets.size(Bucket("144p", 16, "1.78")) == (16, 256, 144)
    assert buckets.batch_size(Bucket("144p", 16, "1.78")) == 8
    assert buckets.choose(1, 144, 256, seed=0) is None
    with pytest.raises(ValueError, match="batch size"):
        buckets.batch_size(Bucket("144p", 1, "1.78"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"145p": {1: (1.0, 1)}}, r"'145p'.*144p"),
        ({"144p": {1: 1.0}}, r"bucket_config\['144p'\]\[1\]: 1.0; allowed: \(chance, batch size\)"),
        ({"144p": {1: (1.5, 1)}}, r"1.5.*0 to 1"),
        ({"144p": {1: ((1.0, 0.5, 0.2), 1)}}, r"0 to 1.*pair"),
        ({"144p": {1: (1.0, None)}}, r"batch size.*None.*1"),
        ({"144p": {"one": (1.0, 1)}}, r"allowed: frames -> \(chance, batch size\)"),
        ({"144p": {}}, r"no bucket"),
        ({"144p": {1: (0, None), 16: (0.0, 2)}}, r"chance.* 0"),
    ],
)
def test_bad_configs_are_errors(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Buckets(config)


def mixed_clips(n: int) -> tuple[Any, Any, Any, Any]:
    """frames, height, width and seed of clips of all kinds, pictures and exact ratios among them."""
    rng = np.random.default_rng(3)
    frames = np.where(rng.random(n) < 0.3, 1, rng.integers(2, 120, n))
    sizes = np.array([(144, 256), (256, 144), (480, 854), (500, 500), (1080, 1920), (100, 400), (90, 120), (640, 640)])
    height, width = (sizes[rng.integers(0, len(sizes), n)] + rng.integers(0, 3, (n, 2))).T
    return frames, height, width, rng.integers(0, 2**40, n)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"256": {1: (0.5, 24), 16: (0.5, 3), 64: (0.0, None)}, "480p": {16: ((1.0, 0.4), 2), 32: ((0.5, 0.3), 1)}},
        {"512": {1: (0.4, 12)}, "144p": {1: (0.0, 1), 8: ((0.5, 1.0), 2), 16: (0.9, 2)}, "480x480": {16: (0.5, 1)}},
    ],
    ids=["few", "forty ratios", "one size"],
)
def test_choose_many_equals_choose(config: Any, interval: int) -> None:
    buckets = Buckets(config)
    frames, height, width, seeds = mixed_clips(3000)
    many = buckets.choose_many(frames, height, width, frame_interval=interval, seeds=seeds)
    at_once = [None if number == DROPPED else buckets.all[number] for number in many]
    each = [
        buckets.choose(int(t), int(h), int(w), frame_interval=interval, seed=int(seed))
        for t, h, w, seed in zip(frames, height, width, seeds, strict=True)
    ]
    assert at_once == each
    assert len(set(each)) > 5


def test_equally_near_ratios_choose_first() -> None:
    """1.875 lies in the middle of 1.75 and 2.0, and halves are exact."""
    buckets, clip = Buckets({"256": {1: (1.0, 1)}}), (1, 375, 200)
    assert buckets.choose(*clip, seed=0) == Bucket("256", 1, "1.75")
    [number] = buckets.choose_many(*(np.array([value]) for value in clip), seeds=np.array([0]))
    assert buckets.all[number].ratio == "1.75"


def test_frames_may_be_written_as_text() -> None:
    assert Buckets({"144p": {"1": (1.0, 2), "16": (1.0, 1)}}).lengths == {"144p": [16, 1]}


def test_a_resolution_of_one_size() -> None:
    """Every clip of at least 0.8 of its pixels is cut to it."""
    buckets = Buckets({"32x48": {1: (1.0, 1)}})
    assert len(buckets) == 1
    bucket = buckets.choose(1, 200, 50, seed=0)
    assert bucket is not None
    assert buckets.size(bucket) == (1, 32, 48)
    assert buckets.choose(1, 30, 40, seed=0) is None
