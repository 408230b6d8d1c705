"""Apply a `Rule`: tensors of a foreign file become the state of a freshly built model, with a report.

Everything here works on meta tensors as well, so that a conversion can be tried at full size without memory.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.weights import first_few, without_prefix

State = dict[str, Tensor]
_PATCHES = "x_embedder.proj.weight"  # [D, latent channels, ...]
_ROUNDING = 1e-2  # tables of half precision files differ by less


@dataclass(frozen=True)
class Rule:
    """How the names of one family become those of one target. Patterns are regular expressions for whole names.

    ignore: tensors of the file that are no part of any model here (a loss).
    prepare: what renaming cannot say, see `layouts`.
    rename: (pattern found anywhere in a name, replacement), in order.
    tables: position tables. They are formulas of the target's size, so the file's are never taken.
    fresh: tensors of the target that the file need not have; they keep their initial values.
    by_channels: tensors that stay fresh when the target's latents have another number of channels than the file's.
    spare: tensors of the file that this target has no place for.
    blocks: what at least one tensor from the file must match, or the load is refused as filling nothing.
    same: the file is of the target's own kind, so that its config and its tensors decide the target's sizes.
    arguments: what the config beside the file says in the target's words, where those are others.
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
    """What a conversion did. Names are the target's, those of `unexpected` and `dropped` the file's after renaming."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # kept as initialised or, for tables, as computed
    tables: dict[str, str] = field(default_factory=dict)  # those of `missing` that are formulas; how the file's differ
    unfit: dict[str, str] = field(default_factory=dict)  # those of `missing` that the file has for other latents
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # tables and losses, left out on purpose
    reshaped: dict[str, str] = field(default_factory=dict)

    def lines(self, full: bool = False) -> list[str]:
        """One line per kind; `full` lists every name below it. What is not as in the file is always listed."""
        fresh = [name for name in self.missing if name not in self.tables and name not in self.unfit]
        computed, unexpected, reshaped = "missing, computed for this size", "unexpected, left out", "reshaped"
        unfit = "missing, freshly initialised for other latents"
        always = (computed, unexpected, reshaped, unfit)
        kinds = {
            "loaded": self.loaded,
            "missing, freshly initialised": fresh,
            computed: [f"{name}{how and f' ({how})'}" for name, how in self.tables.items()],
            unfit: [f"{name} ({how})" for name, how in self.unfit.items()],
            unexpected: self.unexpected,
            "position tables and losses of the file, not used": self.dropped,
            reshaped: [f"{name}: {how}" for name, how in self.reshaped.items()],
        }
        lines = []
        for kind, names in kinds.items():
            lines.append(f"{kind}: {len(names)}")
            if full or kind in always:
                lines += [f"  {name}" for name in names]
        return lines


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns describes the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def fill(model: nn.Module, state: Mapping[str, Tensor], rule: Rule, where: str, ignore: Sequence[str] = ()) -> Report:
    """Put `state` into `model` by `rule`; what the rule leaves fresh keeps the model's values.

    where: the source, for messages. ignore: names of the file that start with one of these are dropped.
    A model on meta stays there: only names and shapes are checked.
    Raises WeightsError when a tensor is missing that the rule does not call fresh, when one has no place, when shapes
    differ, or when no block is filled; the model is then untouched.
    """
    wanted: State = model.state_dict()
    names = dict(zip(without_prefix(wanted), wanted, strict=True))  # without "module.", which a target may have itself
    report = Report()
    found, tables = _translate(state, rule, model, report, ignore)
    others = _latent_channels(found) != _latent_channels(wanted)
    new: State = {}
    shapes = []
    for bare, name in names.items():
        if bare not in found or matches(bare, rule.tables):
            report.missing.append(name)
            if matches(bare, rule.tables):
                report.tables[name] = _difference(tables.get(bare), wanted[name])
            new[name] = wanted[name]
            continue
        tensor, how = _reshape(bare, found[bare], wanted[name])
        if tensor.shape != wanted[name].shape:
            shape = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
            if others and matches(bare, rule.by_channels):
                report.missing.append(name)
                report.unfit[name] = shape
                new[name] = wanted[name]
                continue
            shapes.append(f"{name} {shape}")
        if how:
            report.reshaped[name] = how
        report.loaded.append(name)
        new[name] = tensor
    report.unexpected = [name for name in found if name not in names]
    _refuse_faults(report, rule, shapes, type(model).__name__, where)
    if any(tensor.is_meta for tensor in wanted.values()):
        return report
    model.load_state_dict(new, strict=True)
    return report


def _translate(
    state: Mapping[str, Tensor], rule: Rule, model: nn.Module, report: Report, ignore: Sequence[str]
) -> tuple[State, State]:
    """The file's tensors under the target's names, and its tables apart; losses are left out."""
    kept: State = {}
    for name, tensor in without_prefix(state).items():
        if matches(name, rule.ignore) or name.startswith(tuple(ignore)):
            report.dropped.append(name)
        else:
            kept[name] = tensor
    if rule.prepare is not None:
        kept = rule.prepare(kept, model, report.reshaped)
    found: State = {}
    tables: State = {}
    for name, tensor in kept.items():
        for pattern, replacement in rule.rename:
            name = re.sub(pattern, replacement, name)
        (tables if matches(name, rule.tables) else found)[name] = tensor
    report.dropped += tables
    return found, tables


def _latent_channels(state: Mapping[str, Tensor]) -> int | None:
    return state[_PATCHES].shape[1] if _PATCHES in state else None


def _difference(table: Tensor | None, computed: Tensor) -> str:
    """How a position table of the file differs from the one that took its place; "" when it does not."""
    if table is None:
        return ""
    if table.shape != computed.shape:
        return f"the file's is {list(table.shape)}, this is {list(computed.shape)}"
    if table.is_meta or computed.is_meta:
        return ""
    largest = (table.float() - computed.float()).abs().max().item()
    return f"the file's differs by up to {largest:.2g}" if largest > _ROUNDING else ""


def _reshape(name: str, tensor: Tensor, wanted: Tensor) -> tuple[Tensor, str]:
    """`tensor` in the shape of `wanted`, where there is a rule for it, and how that was done."""
    shape = f"{list(tensor.shape)} to {list(wanted.shape)}"
    if name == _PATCHES and tensor.ndim == 4 and wanted.ndim == 5:
        return tensor.unsqueeze(2), f"{shape}, patches of one frame"
    if name == "y_embedder.y_embedding" and tensor.ndim == 2 and len(tensor) != len(wanted):
        longer = len(wanted) - len(tensor)
        if longer < 0:
            return tensor[: len(wanted)], f"{shape}, last rows cut"
        return torch.cat([tensor, tensor[-1:].expand(longer, -1)]), f"{shape}, last row repeated"
    return tensor, ""


def _refuse_faults(report: Report, rule: Rule, shapes: list[str], target: str, where: str) -> None:
    known = report.tables.keys() | report.unfit.keys()
    absent = [name for name in report.missing if name not in known and not matches(name, rule.fresh)]
    homeless = [name for name in report.unexpected if not matches(name, rule.spare)]
    faults = [
        f"{len(items)} {what}: {first_few(items)}"
        for what, items in (("missing", absent), ("unexpected", homeless), ("of another shape", shapes))
        if items
    ]
    if not any(re.fullmatch(rule.blocks, name) for name in report.loaded):
        faults.insert(0, "it fills no block")
    if faults:
        raise WeightsError(
            f"weights: {where} does not fit {target}: {'; '.join(faults)}; check --from and --to, give the sizes of the "
            "weights as key=value, or leave tensors out with --ignore PREFIX"
        )
