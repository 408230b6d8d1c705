"""Golden data: tensors written by the original implementations, one directory per model or scheduler.

The folder comes from OPENSORA_GOLDEN, by default `../shared/golden` next to the repository. A test runs on every
directory whose layout it knows, so recordings with other sizes need no change of a test.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    """The folder of golden data; it may not exist."""
    return Path(os.environ.get("OPENSORA_GOLDEN") or REPOSITORY / ".." / "shared" / "golden").resolve()


def golden_root() -> Path | None:
    """The golden folder, or None when it is absent."""
    folder = golden_folder()
    return folder if folder.is_dir() else None


@dataclass(frozen=True)
class Case:
    """One recorded call: `in.<argument>`, `out` or `out.<name>`, and outputs of inner modules `mid.<path>`."""

    name: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]  # a single unnamed output has the key ""
    inner: dict[str, Tensor]

    @property
    def out(self) -> Tensor:
        return self.outputs[""]


@dataclass(frozen=True)
class Golden:
    """One golden directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json or meta.json, in which NaN is allowed; {} if there is neither."""
        for name in ("config.json", "meta.json"):
            if (self.path / name).is_file():
                return json.loads((self.path / name).read_text(encoding="utf-8"))
        return {}

    def has(self, file: str) -> bool:
        return (self.path / f"{file}.safetensors").is_file()

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file; half precision was only for storage and is converted to float32."""
        loaded = load_file(self.path / f"{file}.safetensors")
        return {k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in loaded.items()}

    def state(self) -> dict[str, Tensor]:
        """The weights. Sets of VAE directories may share one, named by `weights` in config.json: FILE or FILE of DIR."""
        if "weights" in self.config:
            file, _, owner = self.config["weights"].partition(" of ")
            folders = (self.path.parent / owner, self.path, self.path.parent)
            folder = next(folder for folder in folders if (folder / file).is_file())
            return Golden(folder).tensors(str(Path(file).with_suffix("")))
        return self.tensors("state" if self.has("state") else "state_dict")

    def case_names(self) -> list[str]:
        return list(self.config["cases"])

    def case(self, name: str) -> Case:
        parts: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}, "mid": {}}
        for key, tensor in self.tensors(name).items():
            kind, _, rest = key.partition(".")
            parts[kind][rest] = tensor
        return Case(name, parts["in"], parts["out"], parts["mid"])


def load(path: Path | str) -> Golden:
    return Golden(Path(path))


def _wanted(match: str | Callable[[Golden], bool]) -> list[Golden]:
    root = golden_root()
    recorded = [Golden(p) for p in sorted(root.iterdir()) if p.is_dir()] if root else []
    return [g for g in recorded if (g.name.startswith(match) if isinstance(match, str) else match(g))]


def _absent(what: str) -> list[Any]:
    reason = f"no golden data for {what} in {golden_folder()} (set OPENSORA_GOLDEN)"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def directories(match: str | Callable[[Golden], bool], what: str = "") -> list[Any]:
    """`pytest.param(Golden, id=directory name)` for each directory whose name starts with `match`, or satisfies it.

    Without one, the only parameter is skipped; `what` names the data in the reason.
    """
    return [pytest.param(g, id=g.name) for g in _wanted(match)] or _absent(what or str(match))


def cases(match: str | Callable[[Golden], bool], what: str = "") -> list[Any]:
    """Like `directories`, one parameter `(Golden, case name)` for each case listed in the config."""
    parameters = [pytest.param((g, c), id=f"{g.name}-{c}") for g in _wanted(match) for c in g.case_names()]
    return parameters or _absent(what or str(match))


def released_keys(name: str) -> dict[str, list[int]]:
    """Key -> shape of released full-size weights, from keys/<name>.json; skips the test when that is absent."""
    file = golden_folder() / "keys" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"no {file} (set OPENSORA_GOLDEN)")
    listed = json.loads(file.read_text(encoding="utf-8"))
    for section in ("keys", "state_dict"):
        if section in listed:
            return listed[section]
    return listed


def assert_parity(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, what: str = "output") -> None:
    """max|actual - expected| <= tolerance * max(1, max|expected|), same shape, NaN only where expected has NaN."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, e = actual.detach().double(), expected.double()
    assert torch.equal(a.isnan(), e.isnan()), f"{what}: NaN in different places"
    error = (a - e).nan_to_num().abs().max().item()
    allowed = tolerance * max(1.0, e.nan_to_num().abs().max().item())
    assert error <= allowed, f"{what}: differs by {error:.3g}, allowed {allowed:.3g}"
