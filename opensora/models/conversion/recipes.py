"""What released weights were trained and sampled with: autoencoder, latent scale, text encoder, scheduler, clip size.

A conversion writes this beside the weights, under `run` as training does, so that sampling needs no other config.
Values are those of the published sampling recipes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

_KL_F8 = {  # the architecture of Stable Diffusion's autoencoder, so that planning a run downloads nothing
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 256,
}
_SD_VAE = {
    "type": "VideoAutoencoderKL",
    "from_pretrained": "stabilityai/sd-vae-ft-ema",
    "config": _KL_F8,
    "micro_batch_size": 4,
    "scaling_factor": 0.18215,
}
_T5 = {"type": "t5", "from_pretrained": "DeepFloyd/t5-v1_1-xxl"}

# By class of the model.
RECIPES: dict[str, dict[str, Any]] = {
    "STDiT": {
        "vae": _SD_VAE,
        "text_encoder": _T5,
        "scheduler": {"type": "iddpm", "num_sampling_steps": 100, "cfg_scale": 7.0},
        "fps": 8,
    },
}


def run_for(target: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `run` that belongs beside a model of class `target` built from `config`; {} for an autoencoder."""
    run = copy.deepcopy(RECIPES.get(target, {}))
    text = run.get("text_encoder", {})
    if text.get("type") == "t5":
        text["model_max_length"] = config["model_max_length"]
    return run


def clip_size(input_size: Sequence[int], compression: Sequence[int]) -> dict[str, Any]:
    """num_frames and image_size of the clips that become latents of `input_size`.

    compression: pixels per latent along frames, rows and columns; the first latent frame holds one frame.
    """
    frames, rows, columns = input_size
    return {
        "num_frames": (frames - 1) * compression[0] + 1,
        "image_size": [rows * compression[1], columns * compression[2]],
    }
