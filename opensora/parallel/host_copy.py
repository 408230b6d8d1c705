"""A copy of a run's state that training cannot change any more."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


class HostSnapshot:
    """Copies of a state in host memory, which the next copy overwrites: allocated once, as fresh memory is slow."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._meshes: dict[int, DeviceMesh] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state as it is now, tensors and DTensors; it stays so until the next `take`. All ranks call."""
        return {key: self._take(key, value) for key, value in state.items()}

    def _take(self, key: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return self._copy(key, value)
        return DTensor.from_local(
            self._copy(key, value.to_local()),
            self._on_host(value.device_mesh),
            value.placements,
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )

    def _copy(self, key: str, source: Tensor) -> Tensor:
        kept = self._copies.get(key)
        if kept is None or (kept.shape, kept.dtype) != (source.shape, source.dtype):
            kept = self._copies[key] = torch.empty(source.shape, dtype=source.dtype, device="cpu")
        return kept.copy_(source)

    def _on_host(self, mesh: DeviceMesh) -> DeviceMesh:
        """The same ranks in the same places; the engine keeps its meshes, so an id stands for one."""
        if mesh.device_type == "cpu":
            return mesh
        if id(mesh) not in self._meshes:
            self._meshes[id(mesh)] = DeviceMesh("cpu", mesh.mesh)
        return self._meshes[id(mesh)]
