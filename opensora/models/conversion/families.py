"""Where weights may come from, and what each family's names become in each model here.

Sources: specs of the released files as key lists; PixArt to STDiT, STDiT2 and STDiT3 as Open-Sora 1.0 to 1.3 do it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opensora.models.conversion.fill import Rule


@dataclass(frozen=True)
class Family:
    """One word after `--from`.

    about: what it means, for the help text. rules: by class of the target. default: registered name of the target
    when none is given; "" where it must be named. registry: what the target is.
    same: the file already is such a model, so that its config and its tensors decide the target's sizes.
    arguments, run: of the target and of what it runs with, where the family has others than the target's own.
    """

    about: str
    rules: Mapping[str, Rule]
    default: str = ""
    registry: Literal["model", "vae"] = "model"
    same: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    def arguments_for(self, accepted: Collection[str]) -> dict[str, Any]:
        """Those of `arguments` that the target takes."""
        return {key: value for key, value in self.arguments.items() if key in accepted}

    def reads(self, target: str, accepted: Collection[str]) -> Collection[str]:
        """Which constructor arguments the tensors of the file decide."""
        return accepted if self.same else ()


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

FAMILIES: dict[str, Family] = {
    "pixart-alpha": Family("PixArt-alpha, image model; .pth", _FROM_PIXART),
    "pixart-sigma": Family("PixArt-Sigma, image model; .pth", _FROM_PIXART),
    "stdit": Family("Open-Sora 1.0, or a run of it at another size", {"STDiT": Rule()}, "STDiT-XL/2", same=True),
}
