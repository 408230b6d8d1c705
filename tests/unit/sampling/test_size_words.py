"""Sizes and lengths in words."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from opensora.errors import ConfigError
from opensora.sampling.build import plan_sampling
from opensora.sampling.clip_size import warn_of_cut_size
from opensora.sampling.size_words import fit_to_steps, pixel_size, ratio_of
from opensora.schema import SampleRun

ROOT = Path(__file__).resolve().parents[3]
TINY_VAE = Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict()
RUN: dict[str, Any] = dict(
    vae=TINY_VAE,
    text_encoder={"type": "minilm"},
    scheduler={"type": "rflow"},
    model={"type": "STDiT3", "hidden_size": 48, "depth": 1, "num_heads": 2},
    prompt=["a"],
    num_frames=5,
    image_size=None,
    fps=8.0,
)


def never() -> list[int]:
    raise AssertionError("the trained size plays no part")


@pytest.mark.parametrize(
    ("written", "height_over_width"),
    [
        ("16:9", 9 / 16),
        ("9:16", 16 / 9),
        ("w16:h9", 9 / 16),
        ("h9:w16", 9 / 16),
        ("H16:W9", 16 / 9),
        ("2.39:1", 1 / 2.39),
    ],
)
def test_ratio_is_width_first_unless_its_sides_are_marked(written: str, height_over_width: float) -> None:
    assert ratio_of(written) == pytest.approx(height_over_width)


@pytest.mark.parametrize("written", ["16x9", "wide", "", "16:0", "w16:w9", "-16:9", "1:1:1"])
def test_a_ratio_of_other_form(written: str) -> None:
    with pytest.raises(ConfigError, match=r"'aspect_ratio': found .*16:9 for a wide picture"):
        ratio_of(written)


@pytest.mark.parametrize(
    ("resolution", "ratio", "size"),
    [
        ("240p", "16:9", (240, 426)),
        ("240p", "9:16", (426, 240)),
        ("240p", "h9:w16", (240, 426)),
        ("2K", "1:1", (1920, 1920)),
        (512, "1:1", (512, 512)),
        ("360p", "1:2", (678, 340)),
        ("64x96", "3:2", (64, 96)),
    ],
)
def test_sizes_are_those_of_open_sora(resolution: str | int, ratio: str, size: tuple[int, int]) -> None:
    assert pixel_size(resolution, ratio, never) == (size, "")


def test_one_word_alone_keeps_the_rest_as_trained() -> None:
    assert pixel_size("480p", None, lambda: [240, 426])[0] == (480, 854)
    assert pixel_size(None, "4:1", lambda: [100, 100])[0] == (50, 200)


def test_a_ratio_that_the_table_lacks() -> None:
    assert pixel_size("480p", "5:4", never) == (
        (554, 738),
        "Open-Sora's table has no such ratio at 480p, the nearest is 554 rows of 738 pixels",
    )
    with pytest.raises(ConfigError, match=r"found 480p at 5:1; allowed: 8:3, 21:9, .*16:9.* \(width:height\)"):
        pixel_size("480p", "5:1", never)
    with pytest.raises(ConfigError, match=r"'481p'; allowed: 144p, "):
        pixel_size("481p", "16:9", never)


def test_sizes_are_cut_down_to_steps() -> None:
    assert fit_to_steps((240, 426), (16, 16)) == (240, 416)
    assert fit_to_steps((7, 33), (8, 8)) == (8, 32)


@pytest.mark.parametrize(
    ("words", "size", "fps", "line"),
    [
        ({"resolution": "144p", "aspect_ratio": "16:9"}, (5, 144, 256), 8.0, "144p at 16:9 is 144 rows of 256 pixels"),
        (
            {"resolution": "144p", "aspect_ratio": "h3:w8"},
            (5, 116, 312),
            8.0,
            "144p at h3:w8 is 117 rows of 312 pixels; autoencoder and patches take multiples of 2 pixels, so it becomes",
        ),
        ({"num_frames": "4s"}, (33, 16, 16), 8.0, "4s is 32 frames at 8 frames per second; the autoencoder holds 33"),
        ({"num_frames": "0.5s", "fps": 10}, (5, 16, 16), 10.0, "0.5s is 5 frames at 10 frames per second"),
        ({"num_frames": "4s", "fps": 24}, (103, 16, 16), 24.0, "4s is 102 frames at 24 frames per second; the auto"),
        ({"num_frames": "2x"}, (103, 16, 16), 8.0, "2x is 102 frames"),
        (
            {"num_frames": "1s", "fps": 24, "frame_interval": 3},
            (9, 16, 16),
            8.0,
            "1s is 8 frames at 8 frames per second",
        ),
        ({"num_frames": 9, "frame_interval": 2}, (9, 16, 16), 4.0, ""),
    ],
)
def test_words_become_what_the_parts_hold(
    words: dict[str, Any], size: tuple[int, int, int], fps: float, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    if "resolution" not in words:
        words = {"image_size": (16, 16), **words}
    with caplog.at_level(logging.INFO, "opensora"):
        [request] = plan_sampling(SampleRun(**{**RUN, **words}), "s.py").requests
    assert ((request.num_frames, request.height, request.width), request.fps) == (size, fps)
    assert line in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"resolution": "144p", "image_size": (16, 16)}, "'image_size', 'resolution', 'aspect_ratio': found"),
        ({"num_frames": "long"}, "'num_frames': found 'long'; allowed: a number of frames, or seconds such as 4s"),
        ({"num_frames": "0s"}, "'num_frames': found '0s'"),
        (
            {"num_frames": 1_000_000},
            "num_frames is 1000000; it is 1 to 10000 frames in one clip; set fewer, and loop=N",
        ),
        ({"save_fps": 1000.0}, "save_fps: 1000.0; it is 0.1 to 240"),
    ],
)
def test_words_that_cannot_be(words: dict[str, Any], message: str) -> None:
    words = words if "image_size" in words else {"image_size": (16, 16), **words}
    with pytest.raises(ConfigError, match=message):
        plan_sampling(SampleRun(**{**RUN, **words}), "s.py")


def test_each_row_of_a_table_has_its_own_words(tmp_path: Path) -> None:
    """Words, numbers and empty cells in one column."""
    (tmp_path / "p.csv").write_text(
        "text,resolution,aspect_ratio,num_frames,fps\n"
        "a,144p,16:9,2s,\n"
        "b,,9:16,,\n"
        "c,,,9,4\n"
        "d,,,1s,16\n"
    )  # fmt: skip
    keys = {**RUN, "prompt": [], "prompt_path": str(tmp_path / "p.csv"), "image_size": (16, 16)}
    plan = plan_sampling(SampleRun(**keys), "s.py")
    assert [(one.num_frames, one.height, one.width, one.fps) for one in plan.requests] == [
        (17, 144, 256, 8.0), (5, 20, 12, 8.0), (9, 16, 16, 4.0), (17, 16, 16, 16.0)
    ]  # fmt: skip
    for header, row, message in (
        ("resolution", "481p", "line 2: key 'resolution': found '481p'; allowed: 144p"),
        ("aspect_ratio", "wide", "line 2: key 'aspect_ratio': found 'wide'"),
        ("aspect_ratio,height", "16:9,64", "line 2: a size in words next to height and width"),
        ("num_frames", "soon", "line 2: num_frames is 'soon'; it is a whole number"),
    ):
        (tmp_path / "p.csv").write_text(f"text,{header}\na,{row}\n")
        with pytest.raises(ConfigError, match=message):
            plan_sampling(SampleRun(**keys), "s.py")


def test_rows_that_the_autoencoder_cuts_off_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    """A padding model takes any latents, and the autoencoder's are of whole blocks."""
    warn_of_cut_size((240, 424), (8, 8))
    assert caplog.text == ""
    warn_of_cut_size((240, 426), (8, 8))
    assert "image_size is 240 rows of 426 pixels" in caplog.text
    assert "multiples of 8 pixels, so it becomes 240 rows of 424 pixels" in caplog.text
