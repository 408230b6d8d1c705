"""Every registered denoiser and autoencoder at a size that tests afford, with inputs for it.

A denoiser is built small through the constructor arguments it shares with `SMALL`; an autoencoder needs an entry in
`SMALL_VAES`.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Generator, Tensor, nn

from opensora.models.clip_conditioning import clip_conditioning
from opensora.registry import MODELS, VAES, build, constructor, names

SMALL = {
    "input_size": (3, 4, 6),
    "in_channels": 4,
    "patch_size": (1, 2, 2),
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "caption_channels": 12,
    "model_max_length": 5,
}
BY_CLASS = " by class"  # after a name: the same with class labels in place of captions
DENOISERS = names(MODELS) + [
    name + BY_CLASS for name in names(MODELS) if "condition" in inspect.signature(constructor(MODELS, name)).parameters
]
ONE_TOKEN = {"model_max_length": 1}  # conditioned on a pooled caption or a class
# By class, where an argument means something else.
OWN: dict[str, dict[str, Any]] = {"LatteT2V": {"patch_size": 2}, "DiT": ONE_TOKEN, "Latte": ONE_TOKEN}
BLOCKS = {"num_res_blocks": 1, "hidden_size": 8, "hidden_size_mult": (1, 1, 2, 2), "norm_groups": 4}
LEVELS = ["DownEncoderBlock2D", "DownEncoderBlock2D"], ["UpDecoderBlock2D", "UpDecoderBlock2D"]
SPATIAL = {
    "block_out_channels": [8, 16],
    "down_block_types": LEVELS[0],
    "up_block_types": LEVELS[1],
    "norm_num_groups": 4,
}
TEMPORAL = {"in_out_channels": 3, "filters": 4, "num_res_blocks": 1, "num_groups": 2}  # over pixels
SMALL_VAES: dict[str, dict[str, Any]] = {
    "CausalVAEModel": BLOCKS,
    "VideoAutoencoderKL": {"config": SPATIAL, "micro_batch_size": 4},
    "VideoAutoencoderKLTemporalDecoder": {
        # its norms always have 32 groups, and with one layer its middle's attention is never used
        "config": {"block_out_channels": [32, 32], "down_block_types": LEVELS[0], "layers_per_block": 2},
        "micro_batch_size": 4,
    },
    "VAE_Temporal": TEMPORAL,
    "VAE_Temporal_SD": TEMPORAL,
    "OpenSoraVAE_V1_2": {
        "spatial": {"config": SPATIAL},
        "temporal": {**TEMPORAL, "in_out_channels": 4},
        "micro_frame_size": 4,
    },
    "OpenSoraVAE_V1_3": {"hidden_size": 8, "num_res_blocks": 1, "norm_groups": 4},
}


def full(name: str) -> dict[str, Any]:
    """The config of one of DENOISERS at its own size."""
    by_class = {"condition": "label_7"} if name.endswith(BY_CLASS) else {}
    return {"type": name.removesuffix(BY_CLASS), **by_class}


def small(name: str, **more: Any) -> dict[str, Any]:
    named = full(name)
    create = constructor(MODELS, named["type"])
    own = OWN.get(getattr(create, "__wrapped_class__", create).__name__, {})
    known = inspect.signature(create).parameters
    return named | {key: value for key, value in {**SMALL, **own, **more}.items() if key in known}


@functools.cache
def architectures() -> list[str]:
    """One name for each network that the registered ones are at `SMALL` sizes: aliases are other sizes of it."""
    with torch.device("meta"):
        return list({repr(build(MODELS, small(name))): name for name in reversed(DENOISERS)}.values())


def no_caption(model: Any) -> Tensor:
    """The embedding of no caption, or zeros where that is the encoded empty prompt."""
    null_B1LC = model.null_text(1)
    return torch.zeros(1, 1, model.model_max_length, model.caption_channels) if null_B1LC is None else null_B1LC


def open_gates(module: nn.Module) -> nn.Module:
    """Zero-initialised weights would hide most of a network from a test."""
    rng = Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return module


def denoiser(name: str) -> Any:
    torch.manual_seed(0)
    return open_gates(build(MODELS, small(name)))


def inputs(model: Any, batch: int = 2) -> dict[str, Any]:
    rng = Generator().manual_seed(2)
    y = torch.randn(batch, 1, model.model_max_length, model.caption_channels, generator=rng)
    if getattr(model, "num_classes", None) is not None:
        y = torch.arange(1, batch + 1)
    mask = torch.arange(model.model_max_length).expand(batch, -1) < torch.tensor([[2], [5]])
    return {
        "x": torch.randn(batch, model.in_channels, *model.input_size, generator=rng),
        "timestep": torch.tensor([3.5, 812.0]),
        "y": y,
        "mask": mask.long(),
        **clip_conditioning(model, (17, 32, 48), torch.tensor([8.0, 24.0])[:batch]),
        **frame_conditioning(model, batch),
    }


def one_of(batch: dict[str, Any], i: int) -> dict[str, Any]:
    """The inputs of one sample of a batch."""
    return {key: value[i : i + 1] if isinstance(value, Tensor) else value for key, value in batch.items()}


def frame_conditioning(model: Any, batch: int) -> dict[str, Any]:
    """For a model that embeds latents that are given: its first frame, which attends to another caption."""
    if not model.conditioned:
        return {}
    rng = Generator().manual_seed(3)
    cond = torch.randn(batch, model.in_channels, *model.input_size, generator=rng)
    y_null = torch.randn(batch, 1, model.model_max_length, model.caption_channels, generator=rng)
    return {"cond": cond, "cond_mask": (cond > 0).float(), "mask_index": [0], "y_null": y_null}


def vae(name: str) -> Any:
    assert name in SMALL_VAES, f"add a small {name} to SMALL_VAES"
    torch.manual_seed(0)
    return open_gates(build(VAES, {"type": name, **SMALL_VAES[name]}))


def clip(model: Any) -> Tensor:
    frames = model.compression[0] + 1
    return torch.rand(2, 3, frames, 16, 24, generator=Generator().manual_seed(3)) * 2 - 1


def rngs() -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in (5, 6)]
