"""The table of docs/models.md: every registered size with its parameters, counted on the meta device.

Run: python -m tools.weights.families
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from opensora.registry import MODELS, VAES, build

LEVELS = {  # of Stable Diffusion's image autoencoder
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
}
SD = {"config": {**LEVELS, "up_block_types": ["UpDecoderBlock2D"] * 4}}
SVD = {"config": LEVELS}


@dataclass(frozen=True)
class Row:
    name: str  # in the registry
    family: str
    difference: str
    source: str
    arguments: dict[str, Any] = field(default_factory=dict)  # besides the preset's


OS1_0, OS1_1 = "Open-Sora 1.0", "Open-Sora 1.1"
OS1_2, OS1_3 = "Open-Sora 1.2", "Open-Sora 1.3"
PLAN = "Open-Sora-Plan 1.1"
STDIT = "attention in a frame, then along time, then to the caption; one size"
DENOISERS = [
    Row(
        "STDiT-XL/2",
        OS1_0,
        STDIT,
        "PixArt-alpha's block (arXiv:2310.00426) with Latte's split",
        {"input_size": (16, 32, 32)},
    ),
    Row("STDiT-L/2", OS1_0, STDIT, "a smaller STDiT-XL/2, not released", {"input_size": (16, 32, 32)}),
    Row("STDiT-B/2", OS1_0, STDIT, "a smaller STDiT-XL/2, not released", {"input_size": (16, 32, 32)}),
    Row("STDiT-S/2", OS1_0, STDIT, "a smaller STDiT-XL/2, not released", {"input_size": (16, 32, 32)}),
    Row(
        "STDiT2-XL/2",
        OS1_1,
        "any size; rotary time, query and key norms; size, frames and rate as inputs",
        "hpcai-tech/OpenSora-STDiT-v2",
    ),
    Row(
        "STDiT3-XL/2",
        OS1_2,
        "spatial and temporal blocks in turn; frame rate as input",
        "hpcai-tech/OpenSora-STDiT-v3",
    ),
    Row("STDiT3-3B/2", OS1_2, "STDiT3, wider", "Open-Sora 1.2"),
    Row(
        "STDiT3-XL/2-v1.3",
        OS1_3,
        "3-D windows over time, rotary space, embedded image or video conditions",
        "hpcai-tech/OpenSora 1.3",
    ),
    Row(
        "PixArt-XL/2",
        "PixArt-alpha",
        "joint attention over all tokens, captions by cross-attention",
        "arXiv:2310.00426",
        {"input_size": (1, 32, 32)},
    ),
    Row(
        "PixArtMS-XL/2",
        "PixArt-alpha",
        "PixArt of any size; size and aspect ratio as inputs",
        "arXiv:2310.00426",
        {"input_size": (1, 128, 128)},
    ),
    Row(
        "DiT-XL/2",
        "DiT",
        "joint attention; a class or one pooled caption by adaLN-Zero",
        "arXiv:2212.09748",
        {"input_size": (1, 32, 32), "condition": "label_1000"},
    ),
    Row(
        "DiT-B/2",
        "DiT",
        "joint attention; a class or one pooled caption by adaLN-Zero",
        "arXiv:2212.09748",
        {"input_size": (1, 32, 32), "condition": "label_1000"},
    ),
    Row(
        "Latte-XL/2",
        "Latte",
        "DiT's blocks, in turn within frames and along time",
        "arXiv:2401.03048",
        {"input_size": (16, 32, 32), "condition": "label_101"},
    ),
    Row(
        "LatteT2V-XL/122",
        PLAN,
        "Latte with captions; images after videos, masks, compressed keys",
        "LanguageBind/Open-Sora-Plan-v1.1.0",
        {"input_size": (17, 64, 64)},
    ),
    Row(
        "LatteT2V-D64-XL/122", PLAN, "LatteT2V with 18 heads of 64", "Open-Sora-Plan 1.1", {"input_size": (17, 64, 64)}
    ),
]
AUTOENCODERS = [
    Row("VideoAutoencoderKL", f"{OS1_0}, 1.1", "an image autoencoder per frame", "stabilityai/sd-vae-ft-ema", SD),
    Row(
        "VideoAutoencoderKLTemporalDecoder",
        "Stable Video Diffusion",
        "an image encoder and a decoder along time",
        "stabilityai/stable-video-diffusion-img2vid",
        SVD,
    ),
    Row("VAE_Temporal_SD", OS1_2, "time only, on latents of images; causal", "part of hpcai-tech/OpenSora-VAE-v1.2"),
    Row("OpenSoraVAE_V1_2", OS1_2, "images, then time in clips of 17 frames", "hpcai-tech/OpenSora-VAE-v1.2"),
    Row("OpenSoraVAE_V1_3", OS1_3, "one causal 3-D network, 16 channels, 4 x 8 x 8", "hpcai-tech/OpenSora-VAE-v1.3"),
    Row(
        "CausalVAEModel",
        PLAN,
        "causal 3-D, 4 x 8 x 8, tiles in space and windows in time",
        "LanguageBind/Open-Sora-Plan-v1.1.0",
    ),
]


def parameters(registry: Any, row: Row) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(registry, {"type": row.name, **row.arguments}).parameters())


def table() -> list[str]:
    """Lines of markdown."""
    lines = []
    for heading, registry, rows in (("Denoisers", MODELS, DENOISERS), ("Autoencoders", VAES, AUTOENCODERS)):
        lines += [
            f"## {heading}",
            "",
            "| name | family | parameters | what is different | source |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            count = f"{parameters(registry, row):,}"
            lines.append(f"| `{row.name}` | {row.family} | {count} | {row.difference} | {row.source} |")
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    print("\n".join(table()))
    sys.exit(0)
