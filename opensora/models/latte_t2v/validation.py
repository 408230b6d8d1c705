"""Checks of LatteT2V's arguments and inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from opensora.errors import ConfigError
from opensora.models.shape_checks import ShapeError, as_3_tuple

# Arguments that released configs hold because the original class is more general. This model has one behavior, so other
# values are refused. attention_mode names a kernel of the original; here shape, device and dtype choose it.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "patch_size_t": (1,),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "activation_fn": ("gelu-approximate",),
    "attention_type": ("default",),
    "attention_mode": ("math", "xformers", "flash"),
    "num_embeds_ada_norm": (1000,),
    "num_vector_embeds": (None,),
    "use_linear_projection": (False,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "upcast_attention": (False,),
    "rope_scaling_type": ("linear",),
}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first constructor argument that this model does not support."""
    for key, allowed in ALLOWED.items():
        if config[key] not in allowed:
            listed = " or ".join(map(repr, allowed))
            raise ConfigError(f"LatteT2V {key}: {config[key]!r}; {listed} is what every release has; remove the key")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config["cross_attention_dim"] not in (None, width):
        raise ConfigError(
            f"LatteT2V cross_attention_dim: {config['cross_attention_dim']}; captions are projected to the model's width,"
            f" {width} (num_attention_heads * attention_head_dim); remove the key"
        )
    factor, rope = config["compress_kv_factor"], config["use_rope"]
    if factor < 1 or (factor > 1 and rope):
        raise ConfigError(
            f"LatteT2V compress_kv_factor: {factor} with use_rope={rope}; 1 or more, and only 1 with use_rope; change one"
            " of the two"
        )
    scale = config["interpolation_scale_1d"]
    if scale is not None and scale < 1:
        raise ConfigError(
            f"LatteT2V interpolation_scale_1d: {scale}; 1 or more is allowed, since positions are only compressed, never"
            " spread; correct or remove it"
        )


def clip_and_native_size(
    input_size: Sequence[int] | None, sample_size: int | Sequence[int] | None, video_length: int | None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(frames, rows, columns) of the clips, and those that positions are scaled for. Raises ConfigError."""
    if input_size is None and (sample_size is None or video_length is None):
        raise ConfigError(
            f"LatteT2V: input_size None, sample_size {sample_size}, video_length {video_length}; the first, or both of "
            "the others, are needed; give latent frames, rows and columns"
        )
    if isinstance(sample_size, int):
        sample_size = (sample_size, sample_size)
    if input_size is None:
        input_size = (video_length, *sample_size)  # type: ignore[arg-type, misc]
    clip = as_3_tuple("LatteT2V input_size", input_size)
    native = as_3_tuple("LatteT2V video_length, sample_size", (video_length or clip[0], *(sample_size or clip[1:])))
    if clip[0] > native[0]:
        raise ConfigError(
            f"LatteT2V video_length: {native[0]} latent frames, fewer than the {clip[0]} of the clips; raise or remove it"
        )
    return clip, native


def check_inputs(
    x: Tensor,
    y: Tensor,
    *,
    channels: int,
    images: int,
    longest: int | None,
    attention_mask: Tensor | None,
    x_mask: Tensor | None,
) -> None:
    """Raise ShapeError unless latents, captions and masks fit each other. longest: frames of a clip; None = no limit."""
    if x_mask is not None:
        raise ShapeError("LatteT2V: found x_mask; this model has no frame masks; leave it out")
    if x.ndim != 5 or x.shape[1] != channels:
        raise ShapeError(
            f"LatteT2V: latents {list(x.shape)}; [batch, {channels}, frames, rows, columns] is needed; use the autoencoder"
            " that the model was built for"
        )
    frames = x.shape[2] - images
    if images < 0 or frames < 1:
        raise ShapeError(
            f"LatteT2V: use_image_num={images} of {x.shape[2]} latent frames; 0 or more, and at least one frame before"
            " them, are allowed; correct use_image_num"
        )
    if longest is not None and frames > longest:
        raise ShapeError(
            f"LatteT2V: a clip of {frames} latent frames; up to {longest} (video_length) are allowed; shorten the clips,"
            " or set enable_temporal_attentions=False for frames that are all images"
        )
    if y.ndim != 4 or y.shape[:2] != (len(x), 1 + images):
        raise ShapeError(
            f"LatteT2V: captions {list(y.shape)} for {len(x)} clips with {images} images each; "
            f"[{len(x)}, {1 + images}, tokens, channels] is needed; give every clip and every image one"
        )
    if attention_mask is not None and attention_mask.shape != (len(x), *x.shape[2:]):
        raise ShapeError(
            f"LatteT2V: attention_mask {list(attention_mask.shape)} for latents {list(x.shape)}; "
            f"{[len(x), *x.shape[2:]]} is needed; give one number per latent"
        )
