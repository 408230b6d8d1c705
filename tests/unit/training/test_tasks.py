"""What reaches the model: noise, timesteps and dropped captions of each sample's own; the autoencoder's loss."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from opensora.config import load
from opensora.datasets.frame_masks import FrameMasks
from opensora.models.build import build_autoencoder
from opensora.models.vae.gaussian import Gaussian
from opensora.rng import Draw, generator
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schema import TrainRun
from opensora.training.autoencoder_task import AutoencoderTask
from opensora.training.diffusion_task import DiffusionTask
from opensora.types import Batch, EncodedText
from tests.support.command import ROOT

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


class Seen:
    """A model that remembers what it was given."""

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


def noise_of(seen: Seen) -> list[tuple[float, ...]]:
    """With latents of zero, x_t = t * noise."""
    return [tuple((x / (t / 1000)).flatten().tolist()) for x, t in zip(seen.x, seen.t)]


def test_samples_never_share_noise_or_timesteps() -> None:
    task, seen = diffusion(), Seen()
    for step in range(3):
        for sample_ids in ([0, 1], [2, 3]):
            task.loss(seen, batch(step, sample_ids))
    assert len(seen.t) == 12
    assert len(set(seen.t)) == 12
    assert len({tuple(round(value, 3) for value in noise) for noise in noise_of(seen)}) == 12
    values = torch.tensor(noise_of(seen)).flatten()
    assert abs(values.mean()) < 0.2
    assert abs(values.std() - 1) < 0.15
    # nor is one sample's noise a part of another's: neighbours of a shared stream would correlate
    together = torch.corrcoef(torch.tensor(noise_of(seen)))
    assert (together - torch.eye(12)).abs().max() < 0.75


def test_what_a_sample_draws_depends_on_its_place_not_on_its_micro_batch() -> None:
    task, together, apart, other = diffusion(), Seen(), Seen(), Seen()
    task.loss(together, batch(5, [0, 1, 2, 3]))
    for sample_id in (3, 1, 0, 2):
        task.loss(apart, batch(5, [sample_id]))
    assert [apart.t[i] for i in (2, 1, 3, 0)] == together.t
    for mine, theirs in zip((2, 1, 3, 0), together.x):
        assert torch.equal(apart.x[mine], theirs)
    diffusion(seed=2).loss(other, batch(5, [0, 1, 2, 3]))
    assert not set(other.t) & set(together.t)


def test_latents_are_drawn_for_each_sample() -> None:
    """Noise of the autoencoder's posterior is keyed apart from the diffusion noise."""
    still, moving = Seen(), Seen()
    diffusion().loss(still, batch(0, [0, 1]))
    diffusion(spread=1.0).loss(moving, batch(0, [0, 1]))
    assert still.t == moving.t
    drawn = [(m - s) / (1 - t / 1000) for m, s, t in zip(moving.x, still.x, still.t)]
    for sample_id, (latent, noise) in enumerate(zip(drawn, noise_of(still))):
        expected = torch.randn(SIZE, generator=Draw(1, 0, sample_id).rng("latent"))
        torch.testing.assert_close(latent, expected, atol=1e-4, rtol=1e-3)
        assert not torch.allclose(latent.flatten(), torch.tensor(noise), atol=0.1)


def test_captions_are_dropped_at_the_models_rate_and_keyed_by_sample() -> None:
    task, seen = diffusion(drop=0.3), Seen()
    for step in range(50):
        task.loss(seen, batch(step, list(range(20))))
    assert sum(seen.dropped) / len(seen.dropped) == pytest.approx(0.3, abs=0.05)
    assert len({tuple(seen.dropped[i : i + 20]) for i in range(0, 1000, 20)}) == 50
    alone = Seen()
    for sample_id in range(20):
        task.loss(alone, batch(7, [sample_id]))
    assert alone.dropped == seen.dropped[140:160]


def test_given_frames_stay_clean_do_not_count_and_are_keyed_by_sample() -> None:
    """With latents of zero a clean frame is zero; the model says 0, so the loss is the noise of the other frame."""
    task, seen, alone = diffusion(), Seen(), Seen()
    task.masks = FrameMasks({"image_head": 0.5, "image_tail": 0.25})
    loss = task.loss(seen, batch(0, list(range(40))))
    masks = [tuple(mask.tolist()) for mask in seen.x_mask if mask is not None]
    assert set(masks) == {(False, True), (True, False), (True, True)}
    for x, t, mask, loss_1 in zip(seen.x, seen.t, masks, loss.loss_B, strict=True):
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
    seen = Seen()
    diffusion(drop=rate).loss(seen, batch(0, list(range(64))))
    assert set(seen.dropped) == {expected}


def test_step_reports_loss_level_and_tokens_of_each_sample() -> None:
    seen = Seen()
    loss = diffusion().loss(seen, batch(0, [0, 1, 2]))
    # the model says 0 and the latents are 0: the error is the noise itself
    squares = torch.tensor(noise_of(seen)).square().mean(1)
    torch.testing.assert_close(loss.loss_B, squares, rtol=1e-3, atol=1e-3)
    assert loss.noise_level_B is not None
    torch.testing.assert_close(loss.noise_level_B, torch.tensor(seen.t) / 1000)
    assert loss.tokens == 3 * 2 * 2 * 2


def test_validation_asks_the_same_question_every_time_and_drops_no_caption() -> None:
    task, first, again, training = diffusion(drop=1.0), Seen(), Seen(), Seen()
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
def test_validation_asks_every_clip_all_over_the_noise_scale(levels: int) -> None:
    """A clip is asked once in each part of the scale; the figure of a tenth is of the answers that lie in it."""
    task, seen = diffusion(), Seen()
    task.validation_levels = levels
    figures = task.validate(seen, [batch(0, list(range(6)))])
    parts = [[int(t * levels / 1000) for t in seen.t[sample_id::6]] for sample_id in range(6)]
    assert parts == [list(range(levels))] * 6
    assert all(t == int(t) for t in seen.t)
    squares = [sum(value**2 for value in noise) / len(noise) for noise in noise_of(seen)]
    for tenth in range(10):
        inside = [square for square, t in zip(squares, seen.t) if tenth * 100 <= t < (tenth + 1) * 100]
        total, count = figures[f"loss_bin/{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}"]
        assert count == len(inside) > 0
        assert total == pytest.approx(sum(inside), rel=1e-3)
    assert figures["loss"] == (pytest.approx(sum(squares), rel=1e-3), 6 * levels)


def test_validation_of_no_clips_names_the_same_figures() -> None:
    """Ranks add their figures up by name."""
    task = diffusion()
    empty = task.validate(Seen(), [])
    assert list(empty) == list(task.validate(Seen(), [batch(0, [0])]))
    assert set(empty.values()) == {(0.0, 0)}


class Shift(nn.Module):
    """A "reconstruction" half a unit too bright, and a posterior of mean 2 and deviation 1 in two latents per clip."""

    def forward(self, video: Tensor, rngs: Sequence[Generator] | None) -> tuple[Tensor, Gaussian]:
        self.rngs = rngs
        mean = torch.full((len(video), 1, 1, 1, 2), 2.0)
        return video + torch.tensor([0.5, -1.0]).view(-1, 1, 1, 1, 1), Gaussian(mean, torch.zeros_like(mean))


def autoencoder(
    trained: Any, reconstruction: Any = "l1", clips: Callable[[], Any] = lambda: iter([])
) -> AutoencoderTask:
    return AutoencoderTask(
        trained=trained,
        seed=1,
        reconstruction=reconstruction,
        kl_weight=0.1,
        device=torch.device("cpu"),
        statistics_clips=clips,
    )


@pytest.mark.parametrize(("reconstruction", "errors"), [("l1", (0.5, 1.0)), ("l2", (0.25, 1.0))])
def test_autoencoder_loss_by_hand(reconstruction: str, errors: tuple[float, float]) -> None:
    """KL of N(2, 1) from N(0, 1) is 2 per latent: 4 per clip, over the 32 pixel values of the clip."""
    vae = Shift()
    loss = autoencoder(vae, reconstruction).loss(vae, batch(3, [4, 5]))
    expected = [error + 0.1 * 4 / 32 for error in errors]
    torch.testing.assert_close(loss.loss_B, torch.tensor(expected))
    assert loss.noise_level_B is None
    assert loss.tokens == 4
    assert vae.rngs is not None
    for sample_id, rng in zip((4, 5), vae.rngs):
        assert torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=Draw(1, 3, sample_id).rng("latent")))


def test_autoencoder_validation_is_psnr_of_the_mode() -> None:
    """Errors of 0.5 and 1 on a range of 2: 10 log10(4 / 0.25) and 10 log10(4 / 1) decibels."""
    vae = Shift()
    figures = autoencoder(vae).validate(vae, [batch(0, [0, 1])])
    assert figures == {"psnr": (pytest.approx(12.0412 + 6.0206, abs=1e-3), 2)}
    assert vae.rngs is None


def test_latent_statistics_give_mean_zero_and_deviation_one() -> None:
    """An autoencoder built from the saved config normalises the clips that were measured, and keeps its weights' config."""
    run = load(str(ROOT / "configs/vae/train/debug.py"), [], TrainRun).run
    clips = [batch(0, [i], 0.3 + 0.5 * torch.randn(1, 3, 5, 16, 16, generator=generator(0, i))) for i in range(6)]
    vae = build_autoencoder(run.vae, seed=3)
    config = autoencoder(vae, clips=lambda: iter(clips)).config()
    assert {**config, "latent_shift": None, "latent_scale": None} == {**vae.config, "latent_shift": None,
                                                                     "latent_scale": None}  # fmt: skip
    rebuilt = build_autoencoder(config, seed=3)
    with torch.no_grad():
        latents = torch.cat([rebuilt.encode(clip.video_BCTHW) for clip in clips]).transpose(0, 1).flatten(1)
        before = torch.cat([vae.encode(clip.video_BCTHW) for clip in clips]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(len(latents)), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(len(latents)), atol=1e-4, rtol=0)
    assert (before.std(1) - 1).abs().min() > 0.01
