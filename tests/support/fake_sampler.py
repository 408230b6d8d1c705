"""A denoiser, a codec and requests small enough to see through."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from opensora.models.layers.clip_cache import ClipCache
from opensora.models.stdit.stdit import STDiT
from opensora.rng import generator
from opensora.sampling.generate import Sampler
from opensora.sampling.metadata import GenerationSettings
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.types import EncodedText, SampleRequest

TOKENS, WIDTH = 6, 5
SETTINGS = GenerationSettings(guidance_scale=3.0, steps=3, batch_size=1, dtype="fp32", config_hash="c0", weights="w0")


def request(prompt: str = "a red circle", **changes: Any) -> SampleRequest:
    values = dict(negative_prompt="", index=0, repeat=0, num_frames=4, height=16, width=16, fps=8.0, seed=1)
    return SampleRequest(prompt, **{**values, **changes})


class FakeDenoiser(nn.Module):
    """A velocity that leans on the mean of the counted text tokens; records the text and mask of each call."""

    in_channels = 4

    size_conditions = ()
    takes_x_mask = True
    conditioned = False

    def __init__(self, input_size: tuple[int, ...] = (4, 4, 4), fixed_size: bool = True):
        super().__init__()
        self.input_size, self.fixed_size = input_size, fixed_size
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def null_text(self, n: int) -> Tensor:
        return torch.full((n, 1, TOKENS, WIDTH), 0.5)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        clip_cache: ClipCache | None = None,
    ) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append((y, mask))
        counted = y[:, 0] * mask[..., None]
        lean = (counted.sum((1, 2)) / mask.sum(1)).view(-1, 1, 1, 1, 1)
        return lean - 0.1 * x + timestep.view(-1, 1, 1, 1, 1) / 1000


class FakeCodec:
    """Text states drawn from the caption's letters; a "decoder" that repeats latents 4 x 4 and squashes them."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.vae = SimpleNamespace(
            latent_channels=4, compression=(1, 4, 4), latent_size=lambda size: (size[0], size[1] // 4, size[2] // 4)
        )

    def encode_text(self, captions: list[str]) -> EncodedText:
        text = torch.stack([torch.randn(1, TOKENS, WIDTH, generator=generator(0, caption)) for caption in captions])
        counts = torch.tensor([min(TOKENS, len(caption.split())) for caption in captions])
        return EncodedText(text, (torch.arange(TOKENS) < counts[:, None]).long())

    def encode_video(self, video: Tensor, rngs: None = None) -> Tensor:
        """Means over 4 x 4 pixels; the fourth channel is the mean of the others. Decoding undoes it up to the tanh."""
        means = torch.nn.functional.avg_pool3d(video, (1, 4, 4))
        return torch.cat([means, means.mean(1, keepdim=True)], dim=1)

    def decode_video(self, z: Tensor, num_frames: int) -> Tensor:
        assert z.shape[2] == num_frames
        return z[:, :3].repeat_interleave(4, dim=3).repeat_interleave(4, dim=4).tanh()


def fake_sampler(steps: int = 3, **model: Any) -> Sampler:
    return Sampler(FakeDenoiser(**model), RectifiedFlow(num_sampling_steps=steps, cfg_scale=3.0), FakeCodec())


def stdit_sampler() -> Sampler:
    """A real denoiser whose gates are open, so that text and time matter."""
    model = STDiT(
        input_size=(4, 4, 4), hidden_size=24, depth=2, num_heads=2, caption_channels=WIDTH, model_max_length=TOKENS
    )
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    return Sampler(model, RectifiedFlow(num_sampling_steps=3, cfg_scale=3.0), FakeCodec())
