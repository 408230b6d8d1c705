"""Clips trained together with pictures of their own (LatteT2V): encoding, and what the denoiser is told of them.

Shapes: B clips, n pictures each, C channels, T frames of a clip, H W rows and columns; L text tokens.
Source: Open-Sora-Plan 1.1: pictures are encoded as clips of one frame and follow the clip's latents in time.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, cat

from opensora.errors import ConfigError
from opensora.models.codec import Codec
from opensora.registry import MODELS, constructor
from opensora.rng import Draw
from opensora.schema import TrainRun
from opensora.types import Batch, EncodedText


def check_joint(run: TrainRun, dataset: Any, scheduler: Any, where: str, key: str = "dataset") -> None:
    """ConfigError when the data set puts pictures beside clips, and task, model or scheduler do not know them.

    key: of the data set. scheduler: None for task "autoencoder".
    """
    if not hasattr(dataset, "use_image_num"):
        return
    if scheduler is None or run.model is None:
        raise ConfigError(
            f"{where}: key {key!r}: JointDataset puts pictures beside clips, and task {run.task!r} takes clips alone; allowed: "
            f"task 'diffusion'; use {key}.videos as the data set"
        )
    create = constructor(MODELS, run.model["type"])
    model: Any = getattr(create, "__wrapped_class__", create)
    if not _takes(model.forward, "use_image_num"):
        raise ConfigError(
            f"{where}: key {key!r}: JointDataset puts pictures beside clips, and {run.model['type']} takes clips alone; "
            f"allowed: LatteT2V; change the model, or use {key}.videos as the data set"
        )
    if dataset.padded and not _takes(scheduler.training_loss, "valid_BTHW"):
        raise ConfigError(
            f"{where}: key 'scheduler': clips and pictures have different sizes, and {(run.scheduler or {})['type']} "
            "cannot leave padding out of the loss; allowed: iddpm; change it, or give both one image_size"
        )


def check_strides(vae: Any, dataset: Any, where: str, key: str = "dataset") -> None:
    """ConfigError when the masks of a data set are not made for the autoencoder's latents."""
    if not getattr(dataset, "padded", False):
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
    """Latents [B, C, t + n, h, w]: of the clips, and behind them of their pictures, each encoded by itself."""
    rngs = [draw.rng("latent") for draw in draws]
    n = batch.num_images
    if not n:
        return codec.encode_video(batch.video_BCTHW, rngs)
    clips, images = batch.video_BCTHW.split([batch.video_BCTHW.shape[2] - n, n], dim=2)
    images = images.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # [B n, C, 1, H, W]
    own = [draw.rng(f"latent of picture {index}") for draw in draws for index in range(n)]
    image_latents = codec.encode_video(images, own).squeeze(2).unflatten(0, (len(clips), n)).transpose(1, 2)
    return cat([codec.encode_video(clips, rngs), image_latents], dim=2)


def text_and_images(batch: Batch, text: EncodedText, like: Tensor) -> dict[str, Any]:
    """Keyword arguments of a denoiser: captions, and how many of the last frames are pictures. like: on its device."""
    if not batch.num_images:
        return {"y": text.text_B1LC, "mask": text.mask_BL}
    each = (-1, 1 + batch.num_images)  # of a clip: its caption, then its pictures'
    told: dict[str, Any] = {
        "y": text.text_B1LC.squeeze(1).unflatten(0, each),
        "mask": None if text.mask_BL is None else text.mask_BL.unflatten(0, each),
        "use_image_num": batch.num_images,
    }
    if batch.valid_BTHW is not None:
        told["attention_mask"] = batch.valid_BTHW.to(like.device)
    return told


def valid_latents(batch: Batch, like: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of a scheduler's loss: which latents are no padding; none where all are."""
    return {} if batch.valid_BTHW is None else {"valid_BTHW": batch.valid_BTHW.to(like.device)}
