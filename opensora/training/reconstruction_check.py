"""The autoencoder of a diffusion run against the clips of its data set: what it cannot code, no training can learn."""

import itertools
import shlex
from dataclasses import dataclass

import torch
from torch import Tensor

from opensora.errors import OpenSoraError
from opensora.evaluation.psnr import psnr
from opensora.interfaces import Autoencoder
from opensora.log import logger
from opensora.models.frame_counts import nearest_frame_counts
from opensora.rng import key_seed
from opensora.schema import TrainRun
from opensora.training.cached_features import stored_latents
from opensora.training.clip_plan import ClipPlan, single_clip_batches

CLIPS = 4
WARN_BELOW = 22.0  # dB
TUNING_STEPS = 2000  # 120 steps brought a narrow autoencoder of another film from 16 to 19 dB on 131 shots
LARGEST = (17, 256, 256)  # frames, rows, columns of a clip that are coded: enough to judge by, affordable at every size


@dataclass(frozen=True)
class Reconstruction:
    """PSNR in dB of clips of a data set, coded and decoded by an autoencoder."""

    autoencoder: str
    where: str  # the data set
    psnr: list[float]  # of each clip

    @property
    def mean(self) -> float:
        return sum(self.psnr) / len(self.psnr)

    def line(self) -> str:
        """The figures as a sentence."""
        clips = f"{len(self.psnr)} clips" if len(self.psnr) > 1 else "one clip"
        spread = f" ({min(self.psnr):.1f} to {max(self.psnr):.1f})" if len(self.psnr) > 1 else ""
        return f"autoencoder: {self.autoencoder} restores {clips} of {self.where} at {self.mean:.1f} dB PSNR{spread}"


def measure(vae: Autoencoder, clips: ClipPlan, seed: int, count: int = CLIPS) -> Reconstruction | None:
    """Code and decode clips of the planned size, without an effect on random state; None where no clip can be read.

    vae: in evaluation mode. Larger clips are cropped to LARGEST, in the middle of rows and columns.
    """
    parameter = next(vae.parameters())
    values = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a data loader draws a seed from torch's generator
        try:
            batches = single_clip_batches(clips, seed=key_seed(seed, "reconstruction check"), micro_batches=count)
            for batch in itertools.islice(batches, count):
                video = _crop(vae, batch.video_BCTHW)
                coded = vae.encode(video.to(parameter.device, parameter.dtype))
                values.append(psnr(vae.decode(coded, video.shape[2]).float().cpu(), video).item())
        except OpenSoraError:  # rows that cannot be read: training says which, and how many it tolerates
            pass
    return Reconstruction(type(vae).__name__, clips.report.where, values) if values else None


def _crop(vae: Autoencoder, video_BCTHW: Tensor) -> Tensor:
    frames, rows, columns = (min(pair) for pair in zip(video_BCTHW.shape[2:], LARGEST, strict=True))
    if not vae.holds_frames(frames):
        frames = nearest_frame_counts(vae, frames)[0]
    top, left = ((whole - part) // 2 for whole, part in zip(video_BCTHW.shape[3:], (rows, columns), strict=True))
    return video_BCTHW[:, :, :frames, top : top + rows, left : left + columns]


def advice(result: Reconstruction, run: TrainRun, clips: ClipPlan) -> str | None:
    """The warning for an autoencoder that does not know such clips; None where it codes them well."""
    if result.mean >= WARN_BELOW:
        return None
    return (
        f"the autoencoder restores these clips at {result.mean:.1f} dB PSNR, under {WARN_BELOW:g}: generated videos will be "
        f"blurred or miss their colors, however long the denoiser trains; tune it on them first: {tuning_command(run, clips)}; "
        "then train with vae.from_pretrained=outputs/my-vae"
    )


def tuning_command(run: TrainRun, clips: ClipPlan) -> str:
    """The command that tunes the run's autoencoder on the run's clips."""
    vae = {key: value for key, value in run.vae.items() if key not in ("latent_shift", "latent_scale")}
    if vae["type"] == "CausalVAEModel" and set(vae) == {"type", "from_pretrained"}:
        settings = [f"vae.from_pretrained={vae['from_pretrained']}"]
    else:
        settings = [f"vae={ {'_delete_': True, **vae}!r}"]
    path = run.dataset.get("data_path")
    if path is not None:
        settings += [f"{name}.data_path={path}" for name in ("dataset", "validation_dataset")]
    settings += [f"dataset.num_frames={clips.num_frames}"]
    settings += [f"{name}.image_size={clips.image_size}" for name in ("dataset", "validation_dataset")]
    settings += [f"steps={TUNING_STEPS}", "run_dir=outputs/my-vae"]
    parts = ["opensora", "train", "configs/vae/train/demo.py", *settings]
    return " ".join(map(shlex.quote, parts))


def log_reconstruction(run: TrainRun, vae: Autoencoder, clips: ClipPlan) -> None:
    """Log the PSNR of a few clips, and a warning where it is low; nothing for latents that are stored."""
    if stored_latents(clips.dataset) is not None:
        return
    try:
        result = measure(vae, clips, run.seed)
    except torch.OutOfMemoryError:
        logger().warning(
            "autoencoder: not checked on the data set, for decoding takes more memory than the device has left"
        )
        return
    if result is None:
        return
    logger().info(result.line())
    warning = advice(result, run, clips)
    if warning is not None:
        logger().warning(warning)
