"""The contracts between the parts: the attributes and methods that code outside a component relies on.

`Denoiser` and `Autoencoder` are base classes, since a value cannot be typed as both nn.Module and a protocol; the other
contracts are protocols, and a class need not inherit from them. Contracts that need types of their package are there:
datasets/base.py (Dataset), training/task.py (Task), parallel/engine.py (Engine). tests/contract checks registered classes.

Shapes: B batch, C latent channels, T H W frames, rows, columns (lower case: of latents), L text tokens, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from opensora.types import EncodedText

Size = tuple[int, int, int]  # frames, rows, columns


class Denoiser(nn.Module):
    """Predicts noise or velocity from noised latents, a timestep and a caption. Registered in MODELS.

    forward(x, timestep, y, mask=None, x_mask=None, drop_B=None, **conditions) -> [B, out_channels, t, h, w], float32 or
    wider:

    x [B, in_channels, t, h, w]; timestep [B], fractions allowed;
    y [B, 1, L, caption_channels], or labels int64 [B] where `num_classes` is not None;
    mask [b, L] with b dividing B, 1 = the token counts; None = all count;
    x_mask bool [B, t / patch_size[0]], False = a clean conditioning frame; only with `takes_x_mask`;
    drop_B bool [B], True = train this sample on the null caption;
    conditions: one float32 [b] for each name in `size_conditions`, and with `conditioned` those of
    models/frame_conditioning.py.

    A model without one of these features keeps the default below.
    """

    size_conditions: tuple[str, ...] = ()  # keyword arguments that describe the clip; see models/clip_conditioning.py
    fixed_size = True  # latents have exactly `input_size`
    fixed_frames = False  # any rows and columns, but the frames of `input_size`
    pads = False  # sizes that patches do not divide are padded, and the output is cropped
    takes_x_mask = False  # conditioning frames stand clean among the noised ones, marked by `x_mask`
    conditioned = False  # conditioning latents are separate inputs: cond, cond_mask, mask_index, y_null
    class_dropout_prob: float = 0.0  # share of samples that train on the null caption
    num_classes: int | None = None  # number of classes of a model conditioned on classes instead of captions

    input_size: Sequence[Any]  # latent frames, rows, columns the run is planned for; None for unknown ones with `pads`
    patch_size: Size
    in_channels: int  # of the latents
    out_channels: int  # in_channels, or twice that where the variance is predicted as well
    num_heads: int
    caption_channels: int  # width of the text encoder's token states
    model_max_length: int  # tokens of a caption
    forward: Callable[..., Tensor]
    __call__: Callable[..., Tensor]

    def checkpoint_blocks(self) -> list[nn.Module]:
        """Modules whose activations may be recomputed, and whose weights may be gathered one block at a time."""
        raise NotImplementedError

    def null_text(self, n: int) -> Tensor | None:
        """The null caption [n, 1, L, caption_channels] or null labels [n]; None = the encoded empty prompt serves."""
        raise NotImplementedError

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedded captions [B, L, D] and mask bool [B, L]. They depend on the prompt alone, not on x or timestep."""
        raise NotImplementedError


class Posterior(Protocol):
    """A diagonal Gaussian over latents [B, C, t, h, w], before `normalize`."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def logvar(self) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def draw(self, rngs: Sequence[Generator] | None) -> Tensor:
        """A sample, with one CPU generator per clip; None = the mode."""

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, [B], in nats, summed over the latents of a clip."""


class Autoencoder(nn.Module):
    """Clips [B, in_channels, T, H, W] in [-1, 1] to latents [B, latent_channels, t, h, w] and back. Registered in VAES.

    forward(x, rngs=None) -> (reconstruction float32 [B, in_channels, T, H, W], Posterior), for training.
    """

    in_channels: int
    latent_channels: int
    compression: Size  # frames, rows and columns of pixels per latent
    config: dict[str, Any]  # `type` and arguments that rebuild the autoencoder without its folder
    __call__: Callable[..., tuple[Tensor, Posterior]]

    def load(self) -> Self:
        """Read the weights of `from_pretrained`; without one the initial weights stay. Raises WeightsError."""
        raise NotImplementedError

    def latent_size(self, size: Size) -> Size:
        """(frames, rows, columns) of a clip in pixels -> the same of its latents."""
        raise NotImplementedError

    def holds_frames(self, num_frames: int) -> bool:
        """True if `decode` returns all frames of an encoded clip of `num_frames`; always, unless overridden."""
        return True

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Posterior:
        """rngs: for an autoencoder that samples inside the encoder; the others ignore them. Raises ShapeError."""
        raise NotImplementedError

    def normalize(self, z: Tensor) -> Tensor:
        """Posterior latents to the scale that diffusion works at, affine per channel."""
        raise NotImplementedError

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalized latents, float32; rngs: one CPU generator per clip to sample the posterior, None = its mode."""
        raise NotImplementedError

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips float32, about in [-1, 1], from normalized latents; num_frames: how many frames were encoded."""
        raise NotImplementedError

    def decode_windows(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
        """The frames of `decode` in order, one window in memory at a time; a single window unless overridden."""
        yield self.decode(z, num_frames)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight: adversarial losses are balanced by their gradients at it."""
        raise NotImplementedError

    def checkpoint_blocks(self) -> list[nn.Module]:
        """Modules whose activations may be recomputed."""
        raise NotImplementedError


class TextEncoder(Protocol):
    """A frozen text encoder. Registered in TEXT_ENCODERS. Building one reads its config only, `load` its weights."""

    @property
    def denoiser_args(self) -> Mapping[str, Any]:
        """Constructor arguments of a denoiser that takes this encoder's output: condition, caption sizes."""

    def load(self) -> Self:
        """Read tokenizer and weights. Raises WeightsError."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self: ...

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Token states [B, 1, L, C] and mask [B, L], or class labels int64 [B]. Raises DataError for an unknown class."""


class TrainingLoss(Protocol):
    """The loss of one micro-batch."""

    @property
    def loss_B(self) -> Tensor: ...

    @property
    def t_B(self) -> Tensor:
        """Timesteps [B] in [0, num_timesteps]."""


class Scheduler(Protocol):
    """Training loss and sampler of a diffusion or flow process. Registered in SCHEDULERS.

    It knows a model only as `denoise(x_BCTHW, t_B, x_mask=None)`; captions are bound outside, stacked in `text_order`
    when guidance doubles the batch.
    """

    num_timesteps: int  # t runs from 0 (data) to this (noise)
    num_sampling_steps: int  # steps of `sample`
    cfg_scale: float  # guidance scale when a sampling run names none
    image_cfg_scale: float  # image guidance scale when a sampling run names none
    masked_sampling: bool  # `sample` takes mask_BT

    @property
    def text_order(self) -> str:
        """Order of the doubled batch: "cond,null" or "null,cond"."""

    @property
    def image_text_order(self) -> str:
        """Order of the batch that image guidance triples; "" = `sample` takes no image_guidance_scale."""

    @property
    def training_loss(self) -> Callable[..., TrainingLoss]:
        """(denoise, x0_BCTHW, draws, *, t_B, noise, x_mask_BT, size) -> TrainingLoss.

        draws: one per sample, for the timestep and noise that t_B and noise do not fix; size: clips in pixels;
        valid_BTHW, where a scheduler takes it: 0 = padding, left out of the loss.
        """

    @property
    def add_noise(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(x0_BCTHW, noise_BCTHW, t_B) -> x_t, linear in the first two."""

    @property
    def target(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(x0_BCTHW, noise_BCTHW) -> the answer that the model is trained to give, linear in both."""

    @property
    def sample(self) -> Callable[..., Tensor]:
        """(denoise, noise_BCTHW, rngs, *, guidance_scale, mask_BT, size, progress, step_noise) -> latents [B, C, t, h, w].

        rngs: one CPU generator per sample, for noise that is added on the way.
        """
