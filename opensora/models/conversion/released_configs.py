"""The runs of released weights: autoencoder, latent scale, text encoder, scheduler, clip size.

A conversion writes them to the weights' config.json under `run`, as training does, so that sampling needs no other
config. The values are those of the published sampling recipes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from opensora.models.vae.open_sora_1_3 import VIDEO_MEAN, VIDEO_SCALE

_KL_F8 = {  # the layout of Stable Diffusion's autoencoder, so that planning a run downloads nothing
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
_SIGMA_VAE = {  # SDXL's autoencoder, of the same layout; only Sigma uses its own factor
    **_SD_VAE,
    "from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers",
    "subfolder": "vae",
    "scaling_factor": 0.13025,
}
_T5 = {"type": "t5", "from_pretrained": "DeepFloyd/t5-v1_1-xxl"}
_CLIP = {
    "type": "clip",
    "from_pretrained": "openai/clip-vit-base-patch32",
}  # `released_run` replaces it for models by class
_PIXART = {
    "vae": _SD_VAE,
    "text_encoder": _T5,
    "scheduler": {"type": "dpm-solver", "num_sampling_steps": 20, "cfg_scale": 7.0},
    "fps": 1,  # images
}

# By class of the model, or by "family:class" for weights of a family with other settings.
RELEASED_RUNS: dict[str, dict[str, Any]] = {
    "PixArt": _PIXART,
    "PixArtMS": _PIXART,
    "pixart-sigma:PixArt": {**_PIXART, "vae": _SIGMA_VAE},
    "pixart-sigma:PixArtMS": {**_PIXART, "vae": _SIGMA_VAE},
    "DiT": {
        "vae": _SD_VAE,
        "text_encoder": _CLIP,
        "scheduler": {"type": "iddpm", "num_sampling_steps": 100, "cfg_scale": 4.0},
        "fps": 1,  # images
    },
    "Latte": {
        "vae": _SD_VAE,
        "text_encoder": _CLIP,
        "scheduler": {"type": "iddpm", "num_sampling_steps": 100, "cfg_scale": 7.0},
        "fps": 8,
    },
    "STDiT": {
        "vae": _SD_VAE,
        "text_encoder": _T5,
        "scheduler": {"type": "iddpm", "num_sampling_steps": 100, "cfg_scale": 7.0},
        "fps": 8,
    },
    "STDiT2": {
        "vae": _SD_VAE,
        "text_encoder": _T5,
        "scheduler": {"type": "iddpm", "num_sampling_steps": 100, "cfg_scale": 7.0, "table_dtype": "float32"},
        "num_frames": 16,
        "image_size": [240, 424],
        "fps": 8,
    },
    "STDiT3": {
        "vae": {
            "type": "OpenSoraVAE_V1_2",
            "from_pretrained": "hpcai-tech/OpenSora-VAE-v1.2",
            "micro_frame_size": 17,
            "micro_batch_size": 4,
            "shift": [-0.10, 0.34, 0.27, 0.98],
            "scale": [3.85, 2.32, 2.33, 3.06],
        },
        "text_encoder": _T5,
        "scheduler": {"type": "rflow", "num_sampling_steps": 30, "cfg_scale": 7.0, "use_timestep_transform": True},
        "num_frames": 51,
        "image_size": [240, 424],
        "fps": 24,
    },
    "STDiT3 of 16 channels": {  # Open-Sora 1.3
        "vae": {
            "type": "OpenSoraVAE_V1_3",
            "from_pretrained": "hpcai-tech/OpenSora-VAE-v1.3",
            "micro_batch_size": 1,
            "latent_shift": list(VIDEO_MEAN),
            "latent_scale": list(VIDEO_SCALE),
        },
        "text_encoder": _T5,
        "scheduler": {
            "type": "rflow",
            "num_sampling_steps": 30,
            "cfg_scale": 7.0,
            "use_timestep_transform": True,
            "release": "1.3",
        },
        "num_frames": 49,
        "image_size": [240, 416],
        "fps": 24,
    },
    "LatteT2V": {
        "vae": {
            "type": "CausalVAEModel",
            "from_pretrained": "LanguageBind/Open-Sora-Plan-v1.1.0",
            "subfolder": "vae",
            "use_tiling": True,
            "scaling_factor": 0.18215,
        },
        "text_encoder": _T5,
        "scheduler": {"type": "PNDM", "num_sampling_steps": 150, "cfg_scale": 7.5},
        "fps": 24,
    },
}


def released_run(target: str, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `run` of a model of class `target`, built from `config` with weights of `family`; {} for an autoencoder."""
    channels = config.get("in_channels")
    names = f"{family}:{target}", f"{target} of {channels} channels", target
    run = copy.deepcopy(next((RELEASED_RUNS[name] for name in names if name in RELEASED_RUNS), {}))
    condition = str(config.get("condition", ""))
    if condition.startswith("label_"):
        run["text_encoder"] = {"type": "classes", "num_classes": int(condition.removeprefix("label_"))}
    elif run and run["text_encoder"]["type"] == "t5" and "model_max_length" in config:
        run["text_encoder"]["model_max_length"] = config["model_max_length"]
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
