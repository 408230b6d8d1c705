"""Loss, validation and latent statistics of the autoencoder's task."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from opensora.config import load
from opensora.evaluation.ssim import ssim_frames
from opensora.models.build import build_autoencoder
from opensora.models.vae.gaussian import Gaussian
from opensora.models.vae.open_sora_1_2 import LatentReconstruction
from opensora.rng import Draw, generator
from opensora.schema import TrainRun
from opensora.training.autoencoder_task import AutoencoderTask
from opensora.training.clip_lengths import ClipLengths
from tests.support.command import ROOT
from tests.unit.training.test_diffusion_task import batch


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


class Latents(nn.Module):
    """Spatial latents of 0.5, reconstructed 0.25 too high, and latents of the posterior 1 too low."""

    def forward(self, video: Tensor, rngs: object, reconstruct_latents: bool) -> LatentReconstruction:
        assert reconstruct_latents
        target = torch.full((len(video), 2, video.shape[2], 2, 2), 0.5)
        moments = Gaussian(torch.full((len(video), 2, 1, 2, 2), 2.0), torch.zeros(len(video), 2, 1, 2, 2))
        return LatentReconstruction(target + 0.25, moments, target, target[:, :, :1] - 1)


@pytest.mark.parametrize("frames", [1, 5])
def test_loss_on_spatial_latents_by_hand(frames: int) -> None:
    """KL of N(2, 1) is 2 for each of 8 latents, over the 8 numbers of a frame's spatial latents; identity on single frames."""
    task = autoencoder(None)
    task.reconstructs_latents, task.identity_weight = True, 0.5
    loss = task.loss(Latents(), batch(0, [0, 1], torch.zeros(2, 3, frames, 4, 4)))
    identity = 0.5 * 1.0 if frames == 1 else 0.0
    expected = 0.25 + identity + 0.1 * 16 / (8 * frames)
    assert loss.loss_B.tolist() == pytest.approx([expected] * 2)
    assert {name: value.item() for name, value in loss.metrics.items()} == (
        {"latents": 0.25, "identity": 1.0} if frames == 1 else {"latents": 0.25}
    )


def test_a_step_cuts_clips_to_its_length() -> None:
    clips = []

    def model(video: Tensor, rngs: object) -> tuple[Tensor, Gaussian]:
        clips.append(video)
        return video, Gaussian(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))

    task = autoencoder(None)
    task.lengths = ClipLengths(seed=1, image_ratio=0.5, lengths=[3])
    clip = torch.rand(1, 3, 5, 4, 4)
    for step in range(8):
        task.loss(model, batch(step, [0], clip))
    assert {len(video[0, 0]) for video in clips} == {1, 3}
    assert all(torch.equal(video, clip[:, :, : video.shape[2]]) for video in clips)


def test_validation_measures_structure_and_a_distance_of_frames() -> None:
    """SSIM of clips in [0, 1] where frames hold its window; the distance counts each frame, and each clip once."""
    clip = 0.4 * torch.rand(2, 3, 2, 12, 11, generator=generator(0, "clips"))

    def output(video: Tensor, rngs: object) -> tuple[Tensor, None]:
        return video + torch.tensor([0.0, 0.5]).view(-1, 1, 1, 1, 1), None

    task = autoencoder(None)
    task.validation_distance = ("apart", lambda x, y: (y - x).flatten(1).mean(1))
    figures = task.validate(output, [batch(0, [0, 1], clip)])
    unit = (clip[1].transpose(0, 1) + 1) / 2
    similar = ssim_frames(unit[None] + 0.25, unit[None]).mean().item()
    assert 0.5 < similar < 0.99
    assert figures["ssim"] == (pytest.approx(1 + similar), 2)
    assert figures["apart"] == (pytest.approx(0.5), 2)
    assert set(figures) == {"psnr", "ssim", "apart"}


def test_autoencoder_validation_is_psnr_of_the_mode() -> None:
    """Errors of 0.5 and 1 on a range of 2: 10 log10(4 / 0.25) and 10 log10(4 / 1) decibels."""
    vae = Shift()
    figures = autoencoder(vae).validate(vae, [batch(0, [0, 1])])
    assert figures == {"psnr": (pytest.approx(12.0412 + 6.0206, abs=1e-3), 2)}
    assert vae.rngs is None


def test_latent_statistics_give_mean_zero_and_deviation_one() -> None:
    """An autoencoder built from the saved config normalizes the clips that were measured, and keeps its weights' config."""
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
