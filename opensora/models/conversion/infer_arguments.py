"""Constructor arguments inferred from a weights file: sizes of its tensors, and the config.json next to it.

Shapes: T H W patches along frames, rows and columns, S = H*W, D width.
"""

import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from math import atan2, isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.models.read_weights import find_weights
from opensora.models.weights import CONFIG_FILE, read_config

_IGNORED = ("type", "from_pretrained")  # from_pretrained in a hub's config is the source its makers started from
_LARGEST_DENOMINATOR = 100  # scales are short fractions, such as 0.5 or 2/3


def config_next_to(path: str | Path) -> dict[str, Any]:
    """The config.json next to the weights that `path` means; {} when there is none."""
    folder = find_weights(path).parent
    return read_config(folder) if (folder / CONFIG_FILE).is_file() else {}


def accepted_arguments(config: Mapping[str, Any], accepted: Collection[str]) -> dict[str, Any]:
    """The entries of a foreign config.json that a constructor accepts; None and lists of None count as unset."""

    def is_set(value: object) -> bool:
        return any(item is not None for item in value) if isinstance(value, list) and value else value is not None

    return {key: value for key, value in config.items() if key in accepted and key not in _IGNORED and is_set(value)}


def infer_sizes(state: Mapping[str, Tensor], accepted: Collection[str]) -> dict[str, Any]:
    """Constructor arguments that tensors determine: input_size, its scales, `conditioned`, caption tokens.

    Tables on meta give the size of a square grid and no scale.
    """
    inferred: dict[str, Any] = {}
    spatial = _first_of(state, "pos_embed", "pos_embed_spatial")
    temporal = _first_of(state, "pos_embed_temporal", "temp_embed")
    if spatial is not None and "x_embedder.proj.weight" in state:
        grid = _grid(spatial)
        if grid is not None:
            *_, ph, pw = patch = state["x_embedder.proj.weight"].shape[2:]
            frames = temporal.shape[1] * (patch[0] if len(patch) == 3 else 1) if temporal is not None else 1
            inferred["input_size"] = [frames, grid[0] * ph, grid[1] * pw]
            columns = grid[1]
            # neighbors in a row, or in the only column
            inferred["space_scale"] = _scale(spatial, 1, 0) if columns > 1 else _scale(spatial, columns, 1)
    if temporal is not None:
        inferred["time_scale"] = _scale(temporal, 1, None)
    else:
        inferred["no_temporal_pos_emb"] = True  # an image model: its one frame has no position
    if "x_embedder_cond.proj.weight" in state:
        inferred["conditioned"] = True
    if "y_embedder.y_embedding" in state:
        inferred["model_max_length"] = len(state["y_embedder.y_embedding"])
    return {key: value for key, value in inferred.items() if value is not None and key in accepted}


def infer_widths(state: Mapping[str, Tensor]) -> dict[str, int]:
    """depth, hidden_size and caption_channels of a denoiser, as its tensors show them; heads leave no trace."""
    blocks = [match for name in state if (match := re.match(r"(?:spatial_|transformer_)?blocks\.(\d+)\.", name))]
    widths = {"depth": 1 + max(int(match[1]) for match in blocks)} if blocks else {}
    bias = next((state[name] for name in ("x_embedder.proj.bias", "pos_embed.proj.bias") if name in state), None)
    if bias is not None:
        widths["hidden_size"] = len(bias)
    for name in ("y_embedder.y_proj.fc1.weight", "caption_projection.linear_1.weight"):
        if name in state:
            widths["caption_channels"] = state[name].shape[1]
    return widths


def infer_classes(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], accepted: Collection[str]
) -> dict[str, Any]:
    """Constructor arguments that a table of classes determines, besides `arguments`.

    Its last row is the null class, unless `arguments` have class_dropout_prob=0 or condition="label_ROWS": the table
    alone does not show it.
    """
    rows = len(state.get("y_embedder.embedding_table.weight", ()))
    if not rows or "condition" not in accepted:
        return {}
    if arguments.get("condition") == f"label_{rows}":
        return {"class_dropout_prob": 0.0}
    return {"condition": f"label_{rows - (arguments.get('class_dropout_prob') != 0)}"}


def _first_of(state: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((state[name] for name in names if name in state and state[name].ndim == 3), None)


def _grid(spatial_1SD: Tensor) -> tuple[int, int] | None:
    """(rows, columns) of a table: the second half of the channels changes where a new row begins."""
    _, patches, width = spatial_1SD.shape
    if not spatial_1SD.is_meta:
        rows_SD = spatial_1SD[0, :, width // 2 :]
        changed = torch.nonzero((rows_SD != rows_SD[:1]).any(1))
        columns = int(changed[0]) if len(changed) else patches
        repeated = rows_SD.unflatten(0, (-1, columns)) if patches % columns == 0 else None
        if repeated is not None and bool((repeated == repeated[:, :1]).all()):
            return patches // columns, columns
    side = isqrt(patches)
    return (side, side) if side * side == patches else None


def _scale(table_1SD: Tensor, index: int, half: int | None) -> float | None:
    """The divisor of positions: the first sine and cosine at index 1 are those of 1 / scale.

    half: 0 or 1, the half of the channels for columns or rows; None for a temporal table.
    """
    _, positions, width = table_1SD.shape
    if table_1SD.is_meta or positions <= index:
        return None
    width = width if half is None else width // 2
    start = (half or 0) * width
    angle = atan2(float(table_1SD[0, index, start]), float(table_1SD[0, index, start + width // 2]))
    if not angle > 0:  # 1 / scale lies above pi, or this is no sine-cosine table
        return None
    return float(1 / Fraction(angle).limit_denominator(_LARGEST_DENOMINATOR))
