"""Where weights may come from, and what each family's names become in each model here.

Sources: specs of the released files as key lists; PixArt to STDiT, STDiT2 and STDiT3 as Open-Sora 1.0 to 1.3 do it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opensora.models.conversion.fill import Rule


@dataclass(frozen=True)
class Family:
    """One word after `--from`.

    about: what it means, for the help text. rules: by class of the target.
    defaults: (pattern, registered name of the target when none is given), the first with a tensor of such a name;
    empty where the target must be named. registry: what the target is.
    same: the file already is such a model, so that its config and its tensors decide the target's sizes.
    run: what the model runs with, where the family's differs from the recipe of the target's class.
    """

    about: str
    rules: Mapping[str, Rule]
    defaults: Sequence[tuple[str, str]] = ()
    registry: Literal["model", "vae"] = "model"
    same: bool = False
    run: Mapping[str, Any] = field(default_factory=dict)

    def default(self, names: Iterable[str]) -> str | None:
        """The target that tensors of these names belong to, if the family says so."""
        listed = list(names)
        for pattern, target in self.defaults:
            if any(re.match(pattern, name) for name in listed):
                return target
        return None


_SIZE_CONDITIONS = r"(csize|ar)_embedder\..*"  # of the multi-size PixArt; STDiT2 has the same embedders, others none
_NULL_CAPTION = r"y_embedder\.y_embedding"

# Every STDiT starts from PixArt's image model; what is new in it stays as initialised, with shut gates.
_FROM_PIXART = {
    "PixArt": Rule(spare=[_SIZE_CONDITIONS]),
    "PixArtMS": Rule(fresh=[_SIZE_CONDITIONS]),
    "STDiT": Rule(fresh=[r"blocks\.\d+\.attn_temp\..*"], spare=[_SIZE_CONDITIONS]),
    "STDiT2": Rule(
        fresh=[
            r"blocks\.\d+\.attn_temp\..*",
            r"blocks\.\d+\.attn\.[qk]_norm\.weight",
            r"blocks\.\d+\.scale_shift_table_temporal",
            r"t_block_temp\..*",
            r"(csize|ar|fl|fps)_embedder\..*",
            r"rope\.freqs",
        ]
    ),
    # Open-Sora 1.2 renamed PixArt-Sigma's blocks only, so that PixArt-alpha's were left out without a word.
    "STDiT3": Rule(
        rename=[(r"^blocks\.", "spatial_blocks.")],
        fresh=[
            r"temporal_blocks\..*",
            r"spatial_blocks\.\d+\.attn\.[qk]_norm\.weight",
            r"fps_embedder\..*",
            r"x_embedder_cond(_mask)?\..*",
            r"rope\.freqs",
        ],
        spare=[_SIZE_CONDITIONS],
        blocks=r"spatial_blocks\..*",
    ),
}

_TABLE_NAMES = [("^pos_embed$", "pos_embed_spatial"), ("^temp_embed$", "pos_embed_temporal")]  # as here : as released
_CODER = r"(.*\.)?(encoder|decoder)\..*"
_LATTE_T2V = Rule(
    fresh=[r"(temporal_)?transformer_blocks\.\d+\.attn1\.(sr|norm)\..*"],  # compressed keys from a model without
    blocks=r"(temporal_)?transformer_blocks\..*",
)

FAMILIES: dict[str, Family] = {
    "pixart-alpha": Family("PixArt-alpha, image model", _FROM_PIXART),
    "pixart-sigma": Family("PixArt-Sigma, image model", _FROM_PIXART),
    "dit": Family("DiT, images by class", {"DiT": Rule(rename=_TABLE_NAMES)}, [("", "DiT-XL/2")], same=True),
    "latte": Family("Latte, videos by class", {"Latte": Rule(rename=_TABLE_NAMES)}, [("", "Latte-XL/2")], same=True),
    "stdit": Family("Open-Sora 1.0", {"STDiT": Rule()}, [("", "STDiT-XL/2")], same=True),
    "stdit2": Family("Open-Sora 1.1", {"STDiT2": Rule()}, [("", "STDiT2-XL/2")], same=True),
    "stdit3": Family("Open-Sora 1.2 and 1.3", {"STDiT3": Rule()}, [("", "STDiT3-XL/2")], same=True),
    "latte-t2v": Family("Open-Sora-Plan 1.0 and 1.1", {"LatteT2V": _LATTE_T2V}, [("", "LatteT2V-XL/122")], same=True),
    "causal-vae": Family(
        "Open-Sora-Plan's autoencoder, with or without its loss",
        {"CausalVAEModel": Rule(ignore=[r"loss\..*"], blocks=_CODER)},
        [("", "CausalVAEModel")],
        registry="vae",
        same=True,
    ),
    "open-sora-vae": Family(
        "Open-Sora's autoencoders 1.2 and 1.3",
        {"OpenSoraVAE_V1_2": Rule(blocks=_CODER), "OpenSoraVAE_V1_3": Rule(blocks=_CODER)},
        [(r"temporal_vae\.", "OpenSoraVAE_V1_2"), (r"encoder\.", "OpenSoraVAE_V1_3")],
        registry="vae",
        same=True,
    ),
}
