"""Families of released weights, and the rules that rename their keys to those of each model here.

Sources: specs of the released files as key lists; PixArt to STDiT, STDiT2 and STDiT3 as Open-Sora 1.0 to 1.3 do it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from opensora.models.conversion.convert_weights import Rule
from opensora.models.conversion.key_layouts import (
    NEW_IN_TIME,
    image_autoencoder,
    pixart_arguments,
    pixart_of_diffusers,
)


@dataclass(frozen=True)
class Family:
    """A value of `--from`.

    about: description for the help text. rules: by class of the target.
    defaults: (pattern, registered name of the target): without `--to`, the first whose pattern matches a key of the file;
    empty where `--to` is required. registry: of the target.
    """

    about: str
    rules: Mapping[str, Rule]
    defaults: Sequence[tuple[str, str]] = ()
    registry: Literal["model", "vae"] = "model"

    def default(self, names: Iterable[str]) -> str | None:
        """The default target for tensors of these names; None if there is none."""
        listed = list(names)
        for pattern, target in self.defaults:
            if any(re.match(pattern, name) for name in listed):
                return target
        return None


_SIZE_CONDITIONS = r"(csize|ar)_embedder\..*"  # of PixArtMS; STDiT2 has the same embedders, other models have none
_NULL_CAPTION = r"y_embedder\.y_embedding"
_LATENTS = [r"x_embedder\.proj\.weight", r"final_layer\.linear\..*"]  # their shape depends on the latents' channels
_QK_NORM = r"blocks\.\d+\.attn\.[qk]_norm\.weight"

# Every STDiT starts from PixArt's image model; its new layers keep their initial weights, whose output is zero.
_FROM_PIXART = {
    "PixArt": Rule(spare=[_SIZE_CONDITIONS], same=True),
    "PixArtMS": Rule(fresh=[_SIZE_CONDITIONS], same=True),
    "STDiT": Rule(fresh=[r"blocks\.\d+\.attn_temp\..*"], spare=[_SIZE_CONDITIONS], by_channels=_LATENTS),
    "STDiT2": Rule(
        fresh=[
            r"blocks\.\d+\.attn_temp\..*",
            r"blocks\.\d+\.scale_shift_table_temporal",
            r"t_block_temp\..*",
            r"(csize|ar|fl|fps)_embedder\..*",
            r"rope\.freqs",
            _QK_NORM,
        ],
        by_channels=_LATENTS,
    ),
    # Open-Sora 1.2 renamed PixArt-Sigma's blocks only, so PixArt-alpha's were silently left out.
    "STDiT3": Rule(
        rename=[(r"^blocks\.", "spatial_blocks.")],
        fresh=[
            r"temporal_blocks\..*",
            r"fps_embedder\..*",
            r"x_embedder_cond(_mask)?\..*",
            r"rope\.freqs",
            f"spatial_{_QK_NORM}",
        ],
        by_channels=_LATENTS,
        spare=[_SIZE_CONDITIONS],
        blocks=r"spatial_blocks\..*",
    ),
}
# diffusers' layout has no position table and, in most files, no null caption: there the empty caption replaces it.
_FROM_DIFFUSERS = {
    target: replace(rule, prepare=pixart_of_diffusers, fresh=[*rule.fresh, _NULL_CAPTION], arguments=pixart_arguments)
    for target, rule in _FROM_PIXART.items()
}
_TABLE_NAMES = [("^pos_embed$", "pos_embed_spatial"), ("^temp_embed$", "pos_embed_temporal")]  # (released, here)
_CODER = r"(.*\.)?(encoder|decoder)\..*"
_LATTE_T2V = Rule(
    fresh=[r"(temporal_)?transformer_blocks\.\d+\.attn1\.(sr|norm)\..*"],  # new if the source has no key compression
    blocks=r"(temporal_)?transformer_blocks\..*",
    same=True,
)
_SAME = Rule(same=True)
_BY_CLASS = Rule(rename=_TABLE_NAMES, same=True)
_VAE = Rule(ignore=[r"loss\..*"], blocks=_CODER, same=True)

FAMILIES: dict[str, Family] = {
    "pixart-alpha": Family("PixArt-alpha, image model", _FROM_PIXART),
    "pixart-sigma": Family("PixArt-Sigma, image model", _FROM_PIXART),
    "pixart-diffusers": Family("either PixArt in diffusers' layout: its folder `transformer`", _FROM_DIFFUSERS),
    "dit": Family("DiT, images by class", {"DiT": _BY_CLASS}, [("", "DiT-XL/2")]),
    "latte": Family("Latte, videos by class", {"Latte": _BY_CLASS}, [("", "Latte-XL/2")]),
    "stdit": Family("Open-Sora 1.0", {"STDiT": _SAME}, [("", "STDiT-XL/2")]),
    "stdit2": Family("Open-Sora 1.1", {"STDiT2": _SAME}, [("", "STDiT2-XL/2")]),
    "stdit3": Family(
        "Open-Sora 1.2 and 1.3",
        {"STDiT3": _SAME},
        [(r"x_embedder_cond\.", "STDiT3-XL/2-v1.3"), ("", "STDiT3-XL/2")],
    ),
    "latte-t2v": Family(
        "Open-Sora-Plan 1.0 and 1.1, diffusers' Latte", {"LatteT2V": _LATTE_T2V}, [("", "LatteT2V-XL/122")]
    ),
    "sd-vae": Family(
        "Stable Diffusion's image autoencoder, latent-diffusion's or diffusers' layout",
        {"CausalVAEModel": Rule(prepare=image_autoencoder, fresh=[NEW_IN_TIME], blocks=_CODER)},
        [("", "CausalVAEModel")],
        registry="vae",
    ),
    "causal-vae": Family(
        "Open-Sora-Plan's autoencoder, with or without its loss",
        {"CausalVAEModel": _VAE},
        [("", "CausalVAEModel")],
        registry="vae",
    ),
    "open-sora-vae": Family(
        "Open-Sora's autoencoders 1.2 and 1.3",
        {"OpenSoraVAE_V1_2": _VAE, "OpenSoraVAE_V1_3": _VAE},
        [(r"temporal_vae\.", "OpenSoraVAE_V1_2"), (r"encoder\.", "OpenSoraVAE_V1_3")],
        registry="vae",
    ),
}

# diffusers' class, as its config.json names it, and a setting in which two layouts of one class differ: what reads it.
_DIFFUSERS = {
    "PixArtTransformer2DModel": "pixart-diffusers",
    "Transformer2DModel ada_norm_single": "pixart-diffusers",
    "LatteTransformer3DModel": "latte-t2v",
    "AutoencoderKL": "sd-vae",
    "DiTTransformer2DModel": "",
    "Transformer2DModel ada_norm_zero": "",
    "AutoencoderKLTemporalDecoder": "",
}


def rule_for(family: Family, target_class: str, config: Mapping[str, Any]) -> Rule:
    """The family's rule for a class of target, for weights next to this config.json."""
    rule = family.rules[target_class]
    if config.get("_class_name") == "LatteTransformer3DModel":  # diffusers' has no null caption
        return replace(rule, fresh=[*rule.fresh, r"caption_projection\.y_embedding"])
    return rule


def other_layout(config: Mapping[str, Any], family: str) -> str | None:
    """Why weights next to this config.json are not of `family`: the layout of diffusers that it names; None if they may be."""
    name = str(config.get("_class_name"))
    key = name if name in _DIFFUSERS else f"{name} {config.get('norm_type')}"
    reader = _DIFFUSERS.get(key, family)
    if reader == family:
        return None
    advice = f"--from {reader}" if reader else f"the file that --from {family} is meant for: {FAMILIES[family].about}"
    if name == "AutoencoderKLTemporalDecoder":
        advice = "VideoAutoencoderKLTemporalDecoder(from_pretrained=FOLDER), which reads it as it is"
    return f"its config.json says that it is diffusers' {name}; allowed: {advice}"
