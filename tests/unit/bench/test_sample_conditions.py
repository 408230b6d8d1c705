"""Conditioning frames and negative prompts of `opensora bench sample`, on a model of milliseconds."""

from dataclasses import replace

import pytest
import torch

from bench import sample_conditions as bench
from bench.sample_figures import Sampled
from opensora.datasets.moving_shapes import HOLDOUT
from opensora.evaluation.shape_adherence import ideal_clip
from opensora.platforms import select
from tests.support.fake_sampler import request, stdit_sampler

REQUESTS = [request(each.caption(), index=number) for number, each in enumerate(HOLDOUT[:3])]


def test_a_kept_frame_is_as_good_as_the_autoencoder_shows_it() -> None:
    none, first, last, both, extend = bench.frame_rows(stdit_sampler(), REQUESTS, select())
    assert [row["given"] for row in (none, first, last, both, extend)] == list(bench.GIVEN)
    assert "psnr" not in none
    for row in (first, last, both):
        assert row["psnr"] == pytest.approx(row["codec_psnr"], abs=0.01)  # the pictures are bytes
        assert row["worst_psnr"] <= row["psnr"]
    assert none["drawing_psnr"] != first["drawing_psnr"]
    assert set(extend) == {"given", "psnr", "worst_psnr", "codec_psnr"}
    assert extend["psnr"] == pytest.approx(extend["codec_psnr"], abs=1)  # the clip is an mp4


def test_a_frame_that_is_not_kept_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures where the pictures are left out of the requests."""
    monkeypatch.setattr(bench, "_conditioned", lambda request, *rest: request)
    _, first, *_ = bench.frame_rows(stdit_sampler(), REQUESTS, select())
    assert first["psnr"] < first["codec_psnr"] - 1


def test_negative_prompts_change_the_videos_and_the_scale_is_put_back() -> None:
    sampler = stdit_sampler()
    rows = bench.negative_rows(sampler, REQUESTS, select())
    assert [(row["guidance_scale"], row["negative_prompt"]) for row in rows[:4]] == [
        (1.5, name) for name, _ in bench._negatives(REQUESTS)
    ]
    assert len({row["drawing_psnr"] for row in rows}) == len(rows) == 4 * len(bench.SCALES)
    assert sampler.scheduler.cfg_scale == 3.0


def test_negative_prompts_name_another_direction_of_the_same_shape() -> None:
    texts = {name: negatives[0] for name, negatives in bench._negatives(REQUESTS)}
    assert REQUESTS[0].prompt == "a red circle moves left"
    assert texts["the opposite direction"] == "a red circle moves right"
    assert texts["a direction across"] == "a red circle moves up"
    assert texts["null caption"] == ""


def test_the_distance_is_that_to_the_drawing_of_the_prompt() -> None:
    wide = [replace(each, num_frames=9, height=32, width=32) for each in REQUESTS]
    clips = torch.stack([bench._clip_of(each, 7, number) for number, each in enumerate(wide)])
    near = bench.distance(Sampled(clips, clips, 1.0, {}), wide)["drawing_psnr"]
    far = bench.distance(Sampled(clips.flip(2), clips, 1.0, {}), wide)["drawing_psnr"]  # backward in time
    assert near > 30 > 20 > far
    assert ideal_clip(clips[0], HOLDOUT[0]).shape == clips[0].shape
