"""Layouts that need more than renaming: layers stored in parts, image kernels for video convolutions.

The functions are values of `Rule.prepare`: they take the file's tensors and the target, return tensors to rename, and
record shape changes in `reshaped`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.models.vae.tail_init import tail_init

NEW_IN_TIME = r".*\.time_(down|up)sample\..*"  # of CausalVAEModel: an image autoencoder has no such layers

# diffusers' names of a PixArt transformer: ours, for layers that are stored the same way.
_PIXART = (
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^adaln_single\.emb\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^adaln_single\.emb\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^adaln_single\.emb\.resolution_embedder\.linear_1\.", "csize_embedder.mlp.0."),
    (r"^adaln_single\.emb\.resolution_embedder\.linear_2\.", "csize_embedder.mlp.2."),
    (r"^adaln_single\.emb\.aspect_ratio_embedder\.linear_1\.", "ar_embedder.mlp.0."),
    (r"^adaln_single\.emb\.aspect_ratio_embedder\.linear_2\.", "ar_embedder.mlp.2."),
    (r"^adaln_single\.linear\.", "t_block.1."),
    (r"^caption_projection\.linear_1\.", "y_embedder.y_proj.fc1."),
    (r"^caption_projection\.linear_2\.", "y_embedder.y_proj.fc2."),
    (r"^caption_projection\.y_embedding$", "y_embedder.y_embedding"),
    (r"^scale_shift_table$", "final_layer.scale_shift_table"),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_out\.0\.", ".attn.proj."),
    (r"\.attn2\.to_q\.", ".cross_attn.q_linear."),
    (r"\.attn2\.to_out\.0\.", ".cross_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
    (r"\.ff\.net\.2\.", ".mlp.fc2."),
)
# One layer here: several in diffusers, concatenated in this order.
_JOINED = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}


def pixart_of_diffusers(state: dict[str, Tensor], _: nn.Module, reshaped: dict[str, str]) -> dict[str, Tensor]:
    """PixArt in the layout of diffusers' PixArtTransformer2DModel; PixArt's own layout is returned unchanged."""
    if "adaln_single.linear.weight" not in state:
        return state
    parts = {part for names in _JOINED.values() for part in names}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(attn\d\.to_\w)\.(weight|bias)", name)
        if block is None or block[2] not in parts:
            for pattern, replacement in _PIXART:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
            continue
        ours, theirs = next((ours, theirs) for ours, theirs in _JOINED.items() if block[2] in theirs)
        names = [f"transformer_blocks.{block[1]}.{part}.{block[3]}" for part in theirs]
        if block[2] == theirs[0] and all(part in state for part in names):
            joined = f"blocks.{block[1]}.{ours}.{block[3]}"
            renamed[joined] = torch.cat([state[part] for part in names])
            reshaped[joined] = f"{len(names)} layers joined, {', '.join(theirs)}"
    return renamed


def pixart_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """PixArt's arguments from the config.json of diffusers' transformer; {} from another one."""
    if "sample_size" not in config:
        return {}
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    side, patch = config["sample_size"], config["patch_size"]
    return {
        "input_size": [1, side, side],
        "patch_size": [1, patch, patch],
        "space_scale": float(config.get("interpolation_scale") or max(side // 64, 1)),
        "depth": config["num_layers"],
        "num_heads": heads,
        "hidden_size": heads * width,
        "pred_sigma": config["out_channels"] == 2 * config["in_channels"],
        **{key: config[key] for key in ("in_channels", "caption_channels") if key in config},
    }


def image_autoencoder(state: dict[str, Tensor], model: nn.Module, reshaped: dict[str, str]) -> dict[str, Tensor]:
    """A 2-D autoencoder in latent-diffusion's or diffusers' names, for a CausalVAEModel."""
    targets = model.state_dict()
    filled = {name: tensor for name, tensor in tail_init(state, model).items() if not re.fullmatch(NEW_IN_TIME, name)}
    for name, tensor in filled.items():
        if tensor.ndim == 5 and tensor.shape[2] > 1:
            reshaped[name] = f"image kernel to {list(targets[name].shape)}, in the last frame of {tensor.shape[2]}"
    return filled
