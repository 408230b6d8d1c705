"""Joint training of clips and images (LatteT2V): config checks, latents and denoiser arguments.

Shapes: B clips, n images each, C channels, T frames of a clip, H W rows and columns; L text tokens.
Source: Open-Sora-Plan 1.1: images are encoded as clips of one frame and follow the clip's latents in time.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from torch import Tensor, cat

from opensora.datasets.base import Dataset
from opensora.datasets.joint_dataset import JointDataset
from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder, Denoiser, Scheduler
from opensora.models.codec import Codec
from opensora.registry import MODELS, class_of
from opensora.rng import Draw
from opensora.schema import TrainRun
from opensora.types import Batch, EncodedText


def _is_joint(dataset: Dataset) -> TypeGuard[JointDataset]:
    return hasattr(dataset, "use_image_num")


def check_joint(run: TrainRun, dataset: Dataset, scheduler: Scheduler | None, where: str, key: str = "dataset") -> None:
    """Raise ConfigError when the data set puts images next to clips, and task, model or scheduler do not take them.

    key: config key of the data set. scheduler: None for task "autoencoder".
    """
    if not _is_joint(dataset):
        return
    if scheduler is None or run.model is None:
        raise ConfigError(
            f"{where}: key {key!r}: JointDataset puts images next to clips, and task {run.task!r} takes clips alone; allowed: "
            f"task 'diffusion'; use {key}.videos as the data set"
        )
    model: type[Denoiser] = class_of(MODELS, run.model["type"])
    if not _takes(model.forward, "use_image_num"):
        raise ConfigError(
            f"{where}: key {key!r}: JointDataset puts images next to clips, and {run.model['type']} takes clips alone; "
            f"allowed: LatteT2V; change the model, or use {key}.videos as the data set"
        )
    if dataset.padded and not _takes(scheduler.training_loss, "valid_BTHW"):
        raise ConfigError(
            f"{where}: key 'scheduler': clips and images have different sizes, and {(run.scheduler or {})['type']} "
            "cannot leave padding out of the loss; allowed: iddpm; change it, or give both one image_size"
        )


def check_strides(vae: Autoencoder, dataset: Dataset, where: str, key: str = "dataset") -> None:
    """Raise ConfigError when the padding masks of a data set do not fit the autoencoder's latents."""
    if not (_is_joint(dataset) and dataset.padded):
        return
    time, rows, _ = vae.compression
    if dataset.stride != (time, rows):
        raise ConfigError(
            f"{where}: keys '{key}.ae_stride_t', '{key}.ae_stride': found {dataset.stride}; allowed: {(time, rows)}, "
            "the frames and pixels of the autoencoder's latents; set them"
        )


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def encode_clips(codec: Codec, batch: Batch, draws: Sequence[Draw]) -> Tensor:
    """Latents [B, C, t + n, h, w]: those of the clips, then in time those of their images, each encoded by itself."""
    rngs, n = [draw.rng("latent") for draw in draws], batch.num_images
    if n == 0:
        return codec.encode_video(batch.video_BCTHW, rngs)
    clips, images = batch.video_BCTHW.split([batch.video_BCTHW.shape[2] - n, n], dim=2)
    images = images.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [B n, C, 1, H, W]
    image_rngs = [draw.rng(f"latent of picture {index}") for draw in draws for index in range(n)]
    image_latents = codec.encode_video(images, image_rngs).squeeze(2).unflatten(0, (len(clips), n)).transpose(1, 2)
    return cat([codec.encode_video(clips, rngs), image_latents], dim=2)


def text_and_images(batch: Batch, text: EncodedText, like: Tensor) -> dict[str, Any]:
    """Keyword arguments of a denoiser: captions, and the number of images among the last frames. like: gives the device."""
    if batch.num_images == 0:
        return {"y": text.text_B1LC, "mask": text.mask_BL}
    per_clip = (-1, 1 + batch.num_images)  # the caption of the clip, then those of its images
    kwargs: dict[str, Any] = {
        "y": text.text_B1LC.squeeze(1).unflatten(0, per_clip),
        "mask": None if text.mask_BL is None else text.mask_BL.unflatten(0, per_clip),
        "use_image_num": batch.num_images,
    }
    if batch.valid_BTHW is not None:
        kwargs["attention_mask"] = batch.valid_BTHW.to(like.device)
    return kwargs


def valid_latents(batch: Batch, like: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of a scheduler's loss: the mask of latents that are not padding; {} without padding."""
    return {} if batch.valid_BTHW is None else {"valid_BTHW": batch.valid_BTHW.to(like.device)}
