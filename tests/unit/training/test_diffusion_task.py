"""Inputs of the model: each sample has noise, a timestep and a dropped caption of its own."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.datasets.frame_masks import FrameMasks
from opensora.rng import Draw
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.training.diffusion_task import DiffusionTask
from opensora.types import Batch, EncodedText

SIZE = (1, 2, 4, 4)  # channels, frames, rows, columns of what the stand-ins call video and latents


def batch(step: int, ids: Sequence[int], video: Tensor | None = None) -> Batch:
    if video is None:
        video = torch.zeros(len(ids), *SIZE)
    return Batch(video, [f"caption {i}" for i in ids], torch.ones(len(ids)), step, list(ids), list(ids))


class Codec:
    """Latents are pure noise of the "latent" draw times `spread`."""

    def __init__(self, spread: float = 0.0):
        self.spread = spread

    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator]) -> Tensor:
        noise = torch.stack([torch.randn(video_BCTHW.shape[1:], generator=rng) for rng in rngs])
        return video_BCTHW + self.spread * noise

    def encode_text(self, captions: list[str]) -> EncodedText:
        return EncodedText(torch.zeros(len(captions), 1, 3, 2), torch.ones(len(captions), 3, dtype=torch.long))


class RecordingModel:
    """A model that records its inputs and predicts 0."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.t: list[float] = []
        self.dropped: list[bool] = []
        self.x_mask: list[Tensor | None] = []

    def __call__(self, x: Tensor, t_B: Tensor, *, y: Tensor, mask: Tensor, drop_B: Tensor, x_mask: Any) -> Tensor:
        self.x += list(x)
        self.t += t_B.tolist()
        self.dropped += drop_B.tolist()
        self.x_mask += [None] * len(x) if x_mask is None else list(x_mask)
        return torch.zeros_like(x)


def diffusion(drop: float = 0.0, spread: float = 0.0, seed: int = 1) -> DiffusionTask:
    model = SimpleNamespace(
        class_dropout_prob=drop, input_size=SIZE[1:], patch_size=(1, 2, 2), size_conditions=(), conditioned=False
    )
    return DiffusionTask(model, Codec(spread), RectifiedFlow(), seed, {"type": "M"}, {"seed": seed})  # type: ignore[arg-type]


def noise_of(model: RecordingModel) -> list[tuple[float, ...]]:
    """With latents of zero, x_t = t * noise."""
    return [tuple((x / (t / 1000)).flatten().tolist()) for x, t in zip(model.x, model.t)]


def test_samples_never_share_noise_or_timesteps() -> None:
    task, model = diffusion(), RecordingModel()
    for step in range(3):
        for sample_ids in ([0, 1], [2, 3]):
            task.loss(model, batch(step, sample_ids))
    assert len(model.t) == 12
    assert len(set(model.t)) == 12
    assert len({tuple(round(value, 3) for value in noise) for noise in noise_of(model)}) == 12
    values = torch.tensor(noise_of(model)).flatten()
    assert abs(values.mean()) < 0.2
    assert abs(values.std() - 1) < 0.15
    # nor is one sample's noise a part of another's: neighbors of a shared stream would correlate
    together = torch.corrcoef(torch.tensor(noise_of(model)))
    assert (together - torch.eye(12)).abs().max() < 0.75


def test_draws_depend_on_sample_not_micro_batch() -> None:
    task, together, apart, other = diffusion(), RecordingModel(), RecordingModel(), RecordingModel()
    task.loss(together, batch(5, [0, 1, 2, 3]))
    for sample_id in (3, 1, 0, 2):
        task.loss(apart, batch(5, [sample_id]))
    assert [apart.t[i] for i in (2, 1, 3, 0)] == together.t
    for position, expected in zip((2, 1, 3, 0), together.x):
        assert torch.equal(apart.x[position], expected)
    diffusion(seed=2).loss(other, batch(5, [0, 1, 2, 3]))
    assert not set(other.t) & set(together.t)


def test_latents_are_drawn_for_each_sample() -> None:
    """Noise of the autoencoder's posterior is keyed apart from the diffusion noise."""
    still, moving = RecordingModel(), RecordingModel()
    diffusion().loss(still, batch(0, [0, 1]))
    diffusion(spread=1.0).loss(moving, batch(0, [0, 1]))
    assert still.t == moving.t
    noises = [(m - s) / (1 - t / 1000) for m, s, t in zip(moving.x, still.x, still.t)]
    for sample_id, (latent, noise) in enumerate(zip(noises, noise_of(still))):
        expected = torch.randn(SIZE, generator=Draw(1, 0, sample_id).rng("latent"))
        torch.testing.assert_close(latent, expected, atol=1e-4, rtol=1e-3)
        assert not torch.allclose(latent.flatten(), torch.tensor(noise), atol=0.1)


def test_captions_drop_at_model_rate_keyed_by_sample() -> None:
    task, model = diffusion(drop=0.3), RecordingModel()
    for step in range(50):
        task.loss(model, batch(step, list(range(20))))
    assert sum(model.dropped) / len(model.dropped) == pytest.approx(0.3, abs=0.05)
    assert len({tuple(model.dropped[i : i + 20]) for i in range(0, 1000, 20)}) == 50
    alone = RecordingModel()
    for sample_id in range(20):
        task.loss(alone, batch(7, [sample_id]))
    assert alone.dropped == model.dropped[140:160]


def test_masked_frames_are_clean_uncounted_and_keyed_by_sample() -> None:
    """With latents of zero a clean frame is zero; the model says 0, so the loss is the noise of the other frame."""
    task, model, alone = diffusion(), RecordingModel(), RecordingModel()
    task.masks = FrameMasks({"image_head": 0.5, "image_tail": 0.25})
    loss = task.loss(model, batch(0, list(range(40))))
    masks = [tuple(mask.tolist()) for mask in model.x_mask if mask is not None]
    assert set(masks) == {(False, True), (True, False), (True, True)}
    for x, t, mask, loss_1 in zip(model.x, model.t, masks, loss.loss_B, strict=True):
        assert [bool(frame.any()) for frame in x.unbind(1)] == list(mask)
        noise = x[:, torch.tensor(mask)] / (t / 1000)
        torch.testing.assert_close(loss_1, noise.square().mean(), rtol=1e-3, atol=1e-3)
    for sample_id in range(40):
        task.loss(alone, batch(0, [sample_id]))
    assert [tuple(mask.tolist()) for mask in alone.x_mask if mask is not None] == masks
    task.validate(alone, [batch(0, [0])])
    assert alone.x_mask[-1] is None


@pytest.mark.parametrize(("rate", "expected"), [(0.0, False), (1.0, True)])
def test_never_and_always(rate: float, expected: bool) -> None:
    model = RecordingModel()
    diffusion(drop=rate).loss(model, batch(0, list(range(64))))
    assert set(model.dropped) == {expected}


def test_step_reports_loss_level_and_tokens_of_each_sample() -> None:
    model = RecordingModel()
    loss = diffusion().loss(model, batch(0, [0, 1, 2]))
    # the model says 0 and the latents are 0: the error is the noise itself
    squares = torch.tensor(noise_of(model)).square().mean(1)
    torch.testing.assert_close(loss.loss_B, squares, rtol=1e-3, atol=1e-3)
    assert loss.noise_level_B is not None
    torch.testing.assert_close(loss.noise_level_B, torch.tensor(model.t) / 1000)
    assert loss.tokens == 3 * 2 * 2 * 2


def test_validation_repeats_and_drops_no_caption() -> None:
    task, first, again, training = diffusion(drop=1.0), RecordingModel(), RecordingModel(), RecordingModel()
    figures = task.validate(first, [batch(0, [0, 1]), batch(0, [2, 3])])
    assert task.validate(again, [batch(0, [0, 1]), batch(0, [2, 3])]) == figures
    assert first.t == again.t
    assert set(first.dropped) == {False}
    assert len({noise[0] for noise in noise_of(first)}) == 40  # 4 clips at 10 levels, noise of its own for each
    total, count = figures["loss"]
    assert total / count == pytest.approx(torch.tensor(noise_of(first)).square().mean().item(), rel=1e-3)
    task.loss(training, batch(0, [0, 1, 2, 3]))
    assert not {noise[0] for noise in noise_of(training)} & {noise[0] for noise in noise_of(first)}


@pytest.mark.parametrize("levels", [10, 5, 30])
def test_validation_covers_the_noise_scale_per_clip(levels: int) -> None:
    """A clip has one level in each part of the scale; the figure of a tenth is of the losses that lie in it."""
    task, model = diffusion(), RecordingModel()
    task.validation_levels = levels
    figures = task.validate(model, [batch(0, list(range(6)))])
    parts = [[int(t * levels / 1000) for t in model.t[sample_id::6]] for sample_id in range(6)]
    assert parts == [list(range(levels))] * 6
    assert all(t == int(t) for t in model.t)
    squares = [sum(value**2 for value in noise) / len(noise) for noise in noise_of(model)]
    for tenth in range(10):
        inside = [square for square, t in zip(squares, model.t) if tenth * 100 <= t < (tenth + 1) * 100]
        total, count = figures[f"loss_bin/{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}"]
        assert count == len(inside) > 0
        assert total == pytest.approx(sum(inside), rel=1e-3)
    assert figures["loss"] == (pytest.approx(sum(squares), rel=1e-3), 6 * levels)


def test_validation_of_no_clips_names_the_same_figures() -> None:
    """Ranks add their figures up by name."""
    task = diffusion()
    empty = task.validate(RecordingModel(), [])
    assert list(empty) == list(task.validate(RecordingModel(), [batch(0, [0])]))
    assert set(empty.values()) == {(0.0, 0)}
