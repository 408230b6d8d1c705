"""Initialize CausalVAEModel from an image autoencoder ("tail initialization").

A causal convolution pads in front only, so its last tap in time meets the current frame: with the image kernel there and
zeros before, it computes the image convolution of every frame. Modules that change the number of frames have no
counterpart in an image autoencoder and keep their initial weights. A single frame is coded as by the image autoencoder,
except for those modules' learned branch (mix_factor 2 gives it a weight of 0.12); with more frames the norms also share
their statistics. Source: Open-Sora-Plan's report of version 1.1.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.vae.causal_blocks import CausalConv3d

_TEMPORAL = ("time_downsample", "time_upsample")
_WRAPPERS = ("first_stage_model.", "module.")  # of a whole Stable Diffusion checkpoint, of VideoAutoencoderKL
_LOSS = "loss."  # saved with the autoencoder by latent-diffusion's trainer

# diffusers' names and latent-diffusion's, which Open-Sora-Plan kept. A level of the decoder is counted from the coarsest
# in diffusers and from the finest in latent-diffusion.
_BLOCKS = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.attentions\.", r".\1.\2.attn."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)


def tail_init(state: Mapping[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """A complete state for `target` (a CausalVAEModel) from the weights of an image autoencoder of the same widths.

    state: latent-diffusion's names (Stable Diffusion's KL-f8, alone or inside a whole checkpoint) or diffusers'.
    Modules that change the number of frames keep their current weights, so `target` must not be on meta.
    Raises WeightsError when weights are missing, left over or of another shape.
    """
    images = ldm_names(state)
    causal = {name for name, module in target.named_modules() if isinstance(module, CausalConv3d)}
    filled: dict[str, Tensor] = {}
    missing, shapes, used = [], [], set()
    for name, present in target.state_dict().items():
        if any(part in _TEMPORAL for part in name.split(".")):
            filled[name] = present.detach().clone()
            continue
        module, _, leaf = name.rpartition(".")
        inside = module.removesuffix(".conv")
        source = f"{inside}.{leaf}" if inside in causal else name
        if source not in images:
            missing.append(source)
            continue
        used.add(source)
        filled[name] = tail_kernel(images[source], present)
        if filled[name].shape != present.shape:
            shapes.append(f"{source} {list(images[source].shape)} for {list(present.shape)}")
    _refuse(missing, [name for name in images if name not in used], shapes)
    return filled


def tail_kernel(image: Tensor, like: Tensor) -> Tensor:
    """An image kernel [o, i, kh, kw] in the last tap of one [o, i, kt, kh, kw]; a linear map counts as 1 x 1.

    Tensors for which `like` has no taps are returned as they are.
    """
    if like.dim() >= 4 and image.dim() == 2:
        image = image[:, :, None, None]
    if like.dim() != 5 or image.dim() != 4:
        return image.clone()
    kernel = image.new_zeros(*image.shape[:2], like.shape[2], *image.shape[2:])
    kernel[:, :, -1] = image
    return kernel


def ldm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights in `state` under latent-diffusion's names."""
    for wrapper in _WRAPPERS:
        inside = {name.removeprefix(wrapper): each for name, each in state.items() if name.startswith(wrapper)}
        state = inside or state
    levels = [re.search(r"\.up_blocks\.(\d+)\.", name) for name in state]
    coarsest = max((int(level[1]) for level in levels if level), default=0)
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_LOSS):
            continue
        name = re.sub(r"\.up_blocks\.(\d+)\.", lambda each: f".up_blocks.{coarsest - int(each[1])}.", name)
        for theirs, ours in _BLOCKS:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    return renamed


def _refuse(missing: list[str], unexpected: list[str], shapes: list[str]) -> None:
    faults = [
        f"{len(names)} {what}, the first: {names[0]}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise WeightsError(
            f"tail initialization: {'; '.join(faults)}; needed: an image autoencoder of the target's widths, in "
            "latent-diffusion's or diffusers' names; give other weights, or set hidden_size and hidden_size_mult to theirs"
        )
