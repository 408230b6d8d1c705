"""`opensora bench sample` on a model of milliseconds: distances, shortcuts as a config has them, and the tables."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import sample as bench
from bench.sample_figures import Sampled, errors, sample, stage_shares
from opensora.platforms import select
from opensora.sampling.caches.tea_cache import TeaCache
from tests.support.fake_sampler import SETTINGS, request, stdit_sampler

REQUESTS = [request("a cat"), request("a small dog", index=1)]


def sampled(latents: float, pixels: list[float]) -> Sampled:
    videos = torch.tensor(pixels).view(-1, 1, 1, 1, 1).expand(-1, 3, 1, 1, 1)
    return Sampled(videos, torch.full((2, 1), latents), 1.0, {})


def test_errors_are_distances_to_the_exact_videos() -> None:
    """Of frames: 0.2 and 0.02 of a peak of 2 are 20 and 40 dB."""
    result = errors(sampled(1.1, [0.2, 0.02]), sampled(1.0, [0.0, 0.0]))
    assert result == pytest.approx({"relative_l2": 0.1, "psnr": 30.0, "worst_psnr": 20.0})


def test_a_video_is_timed_by_stage_and_the_codec_stays_as_it_was(tmp_path: Path) -> None:
    sampler, platform = stdit_sampler(), select()
    made = sample(sampler, REQUESTS, platform)
    assert made.videos.shape == (2, 3, 4, 16, 16)
    assert made.latents.shape == (2, 4, 4, 4, 4)
    assert set(made.stages) == {"text encoder", "denoiser", "decoder"}
    assert 0 < sum(made.stages.values()) < made.seconds
    assert not {"encode_text", "decode_video"} & set(vars(sampler.codec))
    shares = stage_shares(sampler, REQUESTS, SETTINGS, platform, tmp_path)
    assert sum(shares["stages"].values()) < shares["seconds"]
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_shortcuts_are_those_of_a_config() -> None:
    keys = {"null_every": 4, "cache": {"type": "TeaCache", "threshold": 0.2}}
    assert bench.describe(keys) == "null_every=4, cache=TeaCache(threshold=0.2)"
    shortcuts = bench.shortcuts_of(keys)
    assert shortcuts.null_every == 4
    assert isinstance(shortcuts.cache, TeaCache)
    assert [bench.shortcuts_of(keys).cache is not None for keys in bench.SHORTCUTS].count(True) == 10


def test_tables_show_goal_and_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    platform = select()
    monkeypatch.setattr(bench, "SHORTCUTS", ({"cache": {"type": "TeaCache", "threshold": 1e9}}, {"null_every": 1}))
    rows = bench.shortcut_rows(stdit_sampler(), REQUESTS, platform)
    assert [row["relative_l2"] == 0 for row in rows] == [True, False, True]
    # three calls for each video, of which the first and the last run all blocks
    assert [row["last_blocks_skipped"] for row in rows] == pytest.approx([0, 1 / 3, 0])
    assert [row["copies_left_out"] for row in rows] == [0, 0, 0]
    rows[1] |= {"speedup": 2.5, "psnr": 31.0}
    results = {
        "machine": bench.machine(platform),
        "quick": False,
        "steps": 3,
        "stages": {"seconds": 2.0, "stages": dict(zip(bench.STAGES, (0.2, 1.0, 0.5, 0.1), strict=True))},
        "shortcuts": {"tiny": rows},
        "few_steps": [
            {
                "scheduler": "rflow",
                "steps": 4,
                "seconds": 0.1,
                "adherence": 0.5,
                **errors(*[sampled(1.0, [0.0, 0.0])] * 2),
            }
        ],
        "batches": bench.batch_rows(stdit_sampler(), REQUESTS, platform, quick=True),
        "negative_prompts": [
            {"guidance_scale": 2.5, "negative_prompt": "rain", "adherence": 0.75, "drawing_psnr": 21.3}
        ],
        "conditioning_frames": [
            {"given": "none", "direction": 0.5, "adherence": 0.25, "drawing_psnr": 11.1},
            {"given": "first", "direction": 0.8, "adherence": 0.7, "drawing_psnr": 22.2}
            | {"psnr": 33.3, "worst_psnr": 30.1, "codec_psnr": 34.4},
        ],
    }
    console = Console(width=140)
    for table in bench.tables(results):
        console.print(table)
    printed = capsys.readouterr().out
    assert (
        "2.00 s per MovingShapes video of 3 steps: text encoder 10%, denoiser 50%, decoder 25%, writing 5%" in printed
    )
    (met,) = [line for line in printed.splitlines() if " met " in line]
    assert "cache=TeaCache(threshold=1000000000.0)" in met
    assert "2.50" in met
    cells = [
        line.split("│")[1:-1] for line in printed.splitlines() if "│" in line and ("rain" in line or "first" in line)
    ]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["2.5", "rain", "0.75", "21.3"],
        ["first", "33.3", "30.1", "34.4", "0.80", "0.70", "22.2"],
    ]
