"""Apply a `Rule`: fill a freshly built model from the tensors of a foreign file, with a report.

Everything works on meta tensors too, so that a conversion can be tried at full size without memory.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.read_weights import describe_names, first_few, without_prefix
from opensora.models.weights import check_values

State = dict[str, Tensor]
_PATCHES = "x_embedder.proj.weight"  # [D, latent channels, ...]
_JOINED = " layers joined"  # in a report, of layers that one program stores in parts
_ROUNDING = 1e-2  # tables of half precision files differ by less


@dataclass(frozen=True)
class Rule:
    """Renaming from one family to one target. Patterns are regular expressions for whole names.

    ignore: tensors of the file that belong to no model here (a loss).
    prepare: changes beyond renaming, see key_layouts.py.
    rename: (pattern anywhere in a name, replacement), in order.
    tables: position tables. They are computed for the target's size; those of the file are never used.
    fresh: tensors of the target that may be missing in the file; they keep their initial values.
    by_channels: tensors that keep their initial values when the latents' channels differ between target and file.
    spare: tensors of the file that the target does not have.
    blocks: pattern that at least one loaded tensor must match; otherwise the conversion is refused.
    same: the file holds the target's own architecture, so its config and tensors determine the target's sizes.
    arguments: translates the config.json next to the file to the target's argument names.
    """

    ignore: Sequence[str] = ()
    prepare: Callable[[State, nn.Module, dict[str, str]], State] | None = None
    rename: Sequence[tuple[str, str]] = ()
    tables: Sequence[str] = (r"pos_embed(_spatial|_temporal)?", r"(temp_pos|pos_embed\.pos|temp)_embed")
    fresh: Sequence[str] = ()
    by_channels: Sequence[str] = ()
    spare: Sequence[str] = ()
    blocks: str = r"(spatial_|temporal_)?blocks\.\d+\..*"
    same: bool = False
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


@dataclass
class Report:
    """Result of a conversion. Names are the target's; in `unexpected` and `dropped` the file's after renaming."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # kept their initial values or, for tables, computed ones
    tables: dict[str, str] = field(
        default_factory=dict
    )  # those of `missing` that are computed; difference to the file's
    unfit: dict[str, str] = field(
        default_factory=dict
    )  # those of `missing` that the file has for other latent channels
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # tables and losses, left out on purpose
    reshaped: dict[str, str] = field(default_factory=dict)

    def lines(self, full: bool = False) -> list[str]:
        """One line per kind; `full` lists every name below it. Names that are new or differ from the file are always listed.

        Without `full`, new names that differ in the number of a block are one line, and layers that are only joined are counted.
        """
        fresh = [name for name in self.missing if name not in self.tables and name not in self.unfit]
        computed, unexpected, reshaped = "missing, computed for this size", "unexpected, left out", "reshaped"
        unfit = "missing, freshly initialized for other latents"
        new = "missing, freshly initialized"
        always = (new, computed, unexpected, reshaped, unfit)
        joined = [name for name, how in self.reshaped.items() if _JOINED in how]
        kinds = {
            "loaded": self.loaded,
            new: fresh if full else _by_block(fresh),
            computed: [f"{name}{how and f' ({how})'}" for name, how in self.tables.items()],
            unfit: [f"{name} ({how})" for name, how in self.unfit.items()],
            unexpected: self.unexpected,
            "position tables and losses of the file, not used": self.dropped,
            reshaped: [f"{name}: {how}" for name, how in self.reshaped.items() if full or name not in joined],
        }
        counts = {new: len(fresh), reshaped: len(self.reshaped)}
        lines = []
        for kind, names in kinds.items():
            note = f", {len(joined)} of them only joined" if kind == reshaped and joined else ""
            lines.append(f"{kind}: {counts.get(kind, len(names))}{note}")
            if full or kind in always:
                lines += [f"  {name}" for name in names]
        return lines


def _by_block(names: Sequence[str]) -> list[str]:
    """The names with * for the numbers of blocks, and how many names each stands for."""
    groups = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{group} ({count})" if count > 1 else group for group, count in groups.items()]


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """True if one of the patterns matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def convert_weights(
    model: nn.Module, state: Mapping[str, Tensor], rule: Rule, where: str, ignore: Sequence[str] = ()
) -> Report:
    """Load `state` into `model` by `rule`; tensors that the rule leaves fresh keep the model's values.

    where: the source, for messages. ignore: names of the file that start with one of these are dropped.
    A model on meta stays there: only names and shapes are checked.
    Raises WeightsError for missing tensors that are not `fresh`, unexpected ones that are not `spare`, other shapes, or
    if no block is filled; the model is then unchanged.
    """
    targets: State = model.state_dict()
    names = dict(
        zip(without_prefix(targets), targets, strict=True)
    )  # without "module.", which a target may have itself
    report = Report()
    source, tables = _translate(state, rule, model, report, ignore)
    others = _latent_channels(source) != _latent_channels(targets)
    new: State = {}
    shapes = []
    for bare, name in names.items():
        if bare not in source or matches_any(bare, rule.tables):
            report.missing.append(name)
            if matches_any(bare, rule.tables):
                report.tables[name] = _difference(tables.get(bare), targets[name])
            new[name] = targets[name]
            continue
        tensor, how = _reshape(bare, source[bare], targets[name])
        if tensor.shape != targets[name].shape:
            shape = f"{list(tensor.shape)} instead of {list(targets[name].shape)}"
            if others and matches_any(bare, rule.by_channels):
                report.missing.append(name)
                report.unfit[name] = shape
                new[name] = targets[name]
                continue
            shapes.append(f"{name} {shape}")
        if how:
            report.reshaped[name] = how
        report.loaded.append(name)
        new[name] = tensor
    report.unexpected = [name for name in source if name not in names]
    _refuse_faults(report, rule, shapes, type(model).__name__, where, state)
    check_values(source, targets, where)
    if any(tensor.is_meta for tensor in targets.values()):
        return report
    model.load_state_dict(new, strict=True)
    return report


def _translate(
    state: Mapping[str, Tensor], rule: Rule, model: nn.Module, report: Report, ignore: Sequence[str]
) -> tuple[State, State]:
    """The file's tensors under the target's names, and separately its tables; losses are left out."""
    kept: State = {}
    for name, tensor in without_prefix(state).items():
        if matches_any(name, rule.ignore) or name.startswith(tuple(ignore)):
            report.dropped.append(name)
        else:
            kept[name] = tensor
    if rule.prepare is not None:
        kept = rule.prepare(kept, model, report.reshaped)
    translated: State = {}
    tables: State = {}
    for name, tensor in kept.items():
        for pattern, replacement in rule.rename:
            name = re.sub(pattern, replacement, name)
        (tables if matches_any(name, rule.tables) else translated)[name] = tensor
    report.dropped += tables
    return translated, tables


def _latent_channels(state: Mapping[str, Tensor]) -> int | None:
    return state[_PATCHES].shape[1] if _PATCHES in state else None


def _difference(table: Tensor | None, computed: Tensor) -> str:
    """Difference between a position table of the file and the computed one; "" if there is none."""
    if table is None:
        return ""
    if table.shape != computed.shape:
        return f"the file's is {list(table.shape)}, this is {list(computed.shape)}"
    if table.is_meta or computed.is_meta:
        return ""
    largest = (table.float() - computed.float()).abs().max().item()
    return f"the file's differs by up to {largest:.2g}" if largest > _ROUNDING else ""


def _reshape(name: str, tensor: Tensor, wanted: Tensor) -> tuple[Tensor, str]:
    """`tensor` in the shape of `wanted` where a rule exists, and a description of the change."""
    shape = f"{list(tensor.shape)} to {list(wanted.shape)}"
    if name == _PATCHES and tensor.ndim == 4 and wanted.ndim == 5:
        return tensor.unsqueeze(2), f"{shape}, patches of one frame"
    if name == "y_embedder.y_embedding" and tensor.ndim == 2 and len(tensor) != len(wanted):
        longer = len(wanted) - len(tensor)
        if longer < 0:
            return tensor[: len(wanted)], f"{shape}, last rows cut"
        return torch.cat([tensor, tensor[-1:].expand(longer, -1)]), f"{shape}, last row repeated"
    return tensor, ""


def _refuse_faults(
    report: Report, rule: Rule, shapes: list[str], target: str, where: str, state: Mapping[str, Tensor]
) -> None:
    known = report.tables.keys() | report.unfit.keys()
    absent = [name for name in report.missing if name not in known and not matches_any(name, rule.fresh)]
    homeless = [name for name in report.unexpected if not matches_any(name, rule.spare)]
    faults = [
        f"{len(items)} {what}: {first_few(items)}"
        for what, items in (("missing", absent), ("unexpected", homeless), ("of another shape", shapes))
        if items
    ]
    if not any(re.fullmatch(rule.blocks, name) for name in report.loaded):
        faults = ["it fills no block", *faults, describe_names(state)]
    if faults:
        raise WeightsError(
            f"weights: {where} does not fit {target}: {'; '.join(faults)}; check --from and --to, give the sizes of the "
            "weights as key=value, or leave tensors out with --ignore PREFIX"
        )
