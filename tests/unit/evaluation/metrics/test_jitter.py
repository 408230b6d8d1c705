"""Jitter of clips whose shake is known: every expected value is worked out by hand from waves, shifts and noise.

A wave a * sin(2 pi f x) is a wave of amplitude a * g(f) after the high pass. Two frames of it that lie d pixels apart differ
by 2 a g sin(pi f d) * cos(...), so that half the mean square of the difference is (a g sin(pi f d))**2; waves of different f
add up.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from opensora.errors import DataError
from opensora.evaluation.metrics.jitter import SIGMA, DetailJitter, Jitter, Variances, detail_jitter, moving_part
from tests.support.evaluated_videos import evaluated, noise, values

Gray = NDArray[np.float64]  # [H, W], gray levels

CPU = torch.device("cpu")
H, W, N = 64, 128, 9  # rows, columns, frames
# amplitude in gray levels -> waves per pixel along columns and rows
WAVES = [(12, (1 / 8, 0)), (10, (1 / 6, 1 / 12)), (10, (1 / 12, -1 / 6)), (9, (1 / 16, 1 / 8)), (12, (1 / 12, 1 / 24))]
NOISE = 8.0  # standard deviation, gray levels
ROUNDING = 1 / 12  # variance of rounding to bytes
# Share of white noise's variance that the high pass leaves: one less the blur's weight at 0, twice, plus its squares.
NOISE_LEFT = 1 - 3 / (4 * math.pi * SIGMA**2)
OF_NOISE = NOISE_LEFT * (NOISE**2 + ROUNDING)


def gain(fx: float, fy: float) -> float:
    """Of a wave by the high pass."""
    return 1 - math.exp(-2 * (math.pi * SIGMA) ** 2 * (fx * fx + fy * fy))


def variance(shift: float) -> float:
    """Temporal variance of a scene whose frames are `shift` pixels apart."""
    return sum((a * gain(*f) * math.sin(math.pi * f[0] * shift)) ** 2 for a, f in WAVES)


def scene(x: float = 0, contrast: float = 1) -> Gray:
    """The waves, moved by x pixels to the right."""
    rows, columns = np.mgrid[:H, :W]
    waves = [
        a * np.sin(2 * np.pi * (fx * (columns - x) + fy * rows) + phase) for phase, (a, (fx, fy)) in enumerate(WAVES)
    ]
    return 128 + contrast * np.sum(waves, axis=0)


def new_noise(scenes: Sequence[Gray], where: NDArray[np.bool_] | bool = True) -> list[Gray]:
    """The scenes with noise that is new in each frame."""
    rng = np.random.default_rng(0)
    return [each + np.where(where, rng.normal(0, NOISE, each.shape), 0) for each in scenes]


def rgb(gray: Gray) -> NDArray[np.uint8]:
    return np.repeat(np.clip(np.rint(gray), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def jitter(video: Sequence[Gray], reference: Sequence[Gray]) -> DetailJitter:
    return detail_jitter(zip(map(rgb, video), map(rgb, reference), strict=True))


def ratio(part: Variances | None) -> float:
    assert part is not None
    return part.video / part.reference


STILL = [scene()] * N


def test_noise_on_a_still_scene_is_its_variance_after_the_high_pass() -> None:
    measured = jitter(new_noise(STILL), STILL)
    assert measured.static is not None
    assert pytest.approx(0.94, abs=0.001) == NOISE_LEFT
    assert measured.static.video == pytest.approx(OF_NOISE, rel=0.02)
    assert (measured.static.reference, measured.moving) == (0, None)
    detail = sum((a * gain(*f)) ** 2 / 2 for a, f in WAVES)
    assert ratio(measured.detail) == pytest.approx(1 + OF_NOISE / detail, rel=0.02)


@pytest.mark.parametrize("amplitude", [0.1, 0.25, 0.5])
def test_shake_of_a_still_scene_is_that_of_its_waves(amplitude: float) -> None:
    """Fractions of a pixel to the left and to the right in turn."""
    measured = jitter([scene(x=amplitude * (-1) ** n) for n in range(N)], STILL)
    assert measured.static is not None
    assert measured.static.video == pytest.approx(variance(2 * amplitude) + NOISE_LEFT * ROUNDING, rel=0.03)


def test_sharpness_that_alternates_is_the_change_of_contrast() -> None:
    """Contrasts of 1.1 and 0.9 in turn: the change between frames is 0.2 of the detail."""
    measured = jitter([scene(contrast=1 + 0.1 * (-1) ** n) for n in range(N)], STILL)
    assert measured.static is not None
    expected = 0.1**2 * sum((a * gain(*f)) ** 2 for a, f in WAVES)
    assert measured.static.video == pytest.approx(expected, rel=0.03)
    blurred = jitter([scene(contrast=0.5)] * N, STILL)
    assert blurred.static == Variances(0, 0)
    assert ratio(blurred.detail) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("speed", [0.5, 2.0])  # pixels per frame
def test_jitter_of_a_pan_is_its_ratio_to_that_of_the_original(speed: float) -> None:
    pan = [scene(x=speed * n) for n in range(N)]
    itself = jitter(pan, pan)
    assert itself.static is None
    assert itself.moving is not None
    assert itself.moving.reference == pytest.approx(variance(speed), rel=0.02)
    cases: dict[str, tuple[Sequence[Gray], float]] = {
        "equal": (pan, 1),
        "noise": (new_noise(pan), 1 + OF_NOISE / variance(speed)),
        "detail lost": ([scene(x=speed * n, contrast=0.5) for n in range(N)], 0.25),
        "still": (STILL, 0),
        "shake": (
            [scene(x=speed * n + 0.2 * (-1) ** n) for n in range(N)],
            (variance(speed + 0.4) + variance(speed - 0.4)) / 2 / variance(speed),
        ),
    }
    measured = {name: ratio(jitter(video, pan).moving) for name, (video, _) in cases.items()}
    assert measured == pytest.approx({name: expected for name, (_, expected) in cases.items()}, rel=0.03)


@pytest.mark.parametrize("repeats", [2, 4])
def test_frames_that_are_held_jitter_as_often_as_they_are_held(repeats: int) -> None:
    """As of an autoencoder that makes one picture of several frames: one step of that many in place of small ones.

    The expected ratio is a little below `repeats`: 1.94 and 3.66 at this speed.
    """
    speed, frames = 0.3, 17
    pan = [scene(x=speed * n) for n in range(frames)]
    measured = jitter([pan[n // repeats * repeats] for n in range(frames)], pan)
    expected = variance(repeats * speed) / repeats / variance(speed)
    assert repeats * 0.9 < expected < repeats
    assert ratio(measured.moving) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("noisy", "static", "moving"),
    [("left", OF_NOISE, 1.0), ("right", 0.0, 1 + OF_NOISE / variance(2))],
)
def test_parts_are_measured_apart(noisy: str, static: float, moving: float) -> None:
    """The left half rests, the right half pans; noise on one of them leaves the other as it is."""
    right = np.mgrid[:H, :W][1] >= W // 2
    original = [np.where(right, scene(x=2 * n), scene()) for n in range(N)]
    measured = jitter(new_noise(original, right if noisy == "right" else ~right), original)
    assert measured.static is not None
    assert measured.static.video == pytest.approx(static, rel=0.03, abs=1e-6)
    assert measured.static.reference == pytest.approx(0, abs=1e-6)
    assert ratio(measured.moving) == pytest.approx(moving, rel=0.03)


def test_what_is_covered_and_what_is_uncovered_is_part_of_the_movement() -> None:
    """A square of 16 pixels goes 20 pixels to the right over a soft still scene; each flow alone misses a quarter of this."""
    frames = [scene(contrast=0.3) for _ in range(2)]
    square = np.kron(np.random.default_rng(0).uniform(150, 250, (4, 4)), np.ones((4, 4)))
    for frame, left in zip(frames, (30, 50), strict=True):
        frame[20:36, left : left + 16] = square
    moving = moving_part(*(rgb(frame)[..., 0] for frame in frames))
    assert moving[22:34, 30:46].mean() > 0.98
    assert moving[22:34, 50:66].mean() > 0.98
    assert not moving[:8].any()
    assert not moving[:, 100:].any()


def in_files(folder: Path, clips: dict[str, Sequence[Gray]]) -> list:
    folder.mkdir(exist_ok=True)
    return [evaluated(folder / name, [rgb(frame) for frame in frames]) for name, frames in clips.items()]


def test_figures_are_roots_and_ratios_of_files(tmp_path: Path) -> None:
    pan = [scene(x=2 * n) for n in range(N)]
    videos = in_files(tmp_path / "videos", {"a": new_noise(STILL), "b": new_noise(pan)})
    references = in_files(tmp_path / "references", {"a": STILL, "b": pan})
    figures = {figure.name: figure for figure in Jitter().measure(videos, references, CPU).figures}
    assert list(figures) == ["jitter_static", "jitter_static of references", "jitter_moving", "detail"]
    assert figures["jitter_static"].value == pytest.approx(math.sqrt(OF_NOISE), rel=0.01)
    assert figures["jitter_static"].note == "of 1 of 2 videos; the others have no part at rest"
    assert figures["jitter_static of references"].value == 0
    assert figures["jitter_moving"].value == pytest.approx(1 + OF_NOISE / variance(2), rel=0.03)
    assert figures["jitter_moving"].note == "1: as much as the original; of 1 of 2 videos; the others do not move"
    assert len(figures["detail"].per_video) == 2
    one = values(Jitter().measure(videos[1:], references[1:], CPU))
    assert list(one) == ["jitter_moving", "detail"]
    assert one["jitter_moving"] == figures["jitter_moving"].value


def test_blank_originals_have_no_detail_to_compare_with(tmp_path: Path) -> None:
    blank = np.full((H, W), 7.0)
    [video, reference] = in_files(tmp_path, {"a": new_noise([blank + 99] * 3), "b": [blank] * 3})
    measured = values(Jitter().measure([video], [reference], CPU))
    assert list(measured) == ["jitter_static", "jitter_static of references"]
    assert measured["jitter_static"] == pytest.approx(math.sqrt(OF_NOISE), rel=0.02)


BAD: dict[str, tuple[Callable[[], list], Callable[[], list], str]] = {
    "length": (
        lambda: noise(0),
        lambda: noise(0, frames=2),
        r"\(3, 48, 64\) and \(2, 48, 64\) .*equal size and length",
    ),
    "one frame": (lambda: noise(0, frames=1), lambda: noise(0, frames=1), "has one frame; jitter needs at least two"),
    "small": (
        lambda: noise(0, height=8),
        lambda: noise(0, height=8),
        "frames of 8 rows and 64 columns; jitter needs 16 of both",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_pairs_that_cannot_be_measured_are_sentences(case: str, tmp_path: Path) -> None:
    video, reference, words = BAD[case]
    with pytest.raises(DataError, match=words):
        Jitter().measure([evaluated(tmp_path / "a", video())], [evaluated(tmp_path / "b", reference())], CPU)
