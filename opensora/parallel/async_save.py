"""Saving while training goes on: a copy of the state in host memory, and a thread that writes it.

Two threads that communicate over one process group would take each other's messages, so the threads of all ranks have a
gloo group of their own.
"""

import threading
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Job = Callable[[dist.ProcessGroup | None], None]
_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


class HostSnapshot:
    """Copies of a state in host memory, which training cannot change. The next copy overwrites them.

    The memory is allocated once, because fresh memory is slow.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._sharded: dict[str, tuple[tuple, DTensor]] = {}  # layout, and the DTensor around a buffer: slow to make
        self._meshes: dict[int, DeviceMesh] = {}

    @torch.no_grad()
    def copy(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state as it is now, tensors and DTensors; it stays so until the next `copy`. All ranks call."""
        return {key: self._copy_entry(key, value) for key, value in state.items()}

    def _copy_entry(self, key: str, value: Tensor) -> Tensor:
        if not isinstance(value, DTensor):
            return self._copy_tensor(key, value)
        buffer, mesh = self._copy_tensor(key, value.to_local()), self._host_mesh(value.device_mesh)
        layout = (mesh, value.placements, value.shape, value.stride(), value.dtype)
        if key not in self._sharded or self._sharded[key][0] != layout:
            sharded = DTensor.from_local(
                buffer, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
            )
            self._sharded[key] = layout, sharded
        return self._sharded[key][1]

    def _copy_tensor(self, key: str, source: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (source.shape, source.dtype):
            buffer = self._buffers[key] = torch.empty(source.shape, dtype=source.dtype, device="cpu")
        return buffer.copy_(source)

    def _host_mesh(self, mesh: DeviceMesh) -> DeviceMesh:
        """The same ranks in the same places; the engine keeps its meshes, so an id stands for one."""
        if mesh.device_type == "cpu":
            return mesh
        if id(mesh) not in self._meshes:
            self._meshes[id(mesh)] = DeviceMesh("cpu", mesh.mesh)
        return self._meshes[id(mesh)]


class AsyncWorker:
    """Does one job at a time in a thread. All ranks make it, submit the same jobs in the same order and join them.

    timeout_seconds: a collective inside a job that waits longer fails. set_device: called first in each thread; a new
    thread's current device is the first one of the machine, whatever its rank.
    """

    def __init__(self, timeout_seconds: float, set_device: Callable[[], object]):
        self._set_device = set_device
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            group = dist.new_group(timeout=timedelta(seconds=timeout_seconds), backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # every rank is in it
            self._group = group
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """True if the last job has failed on this rank; `join` raises its error."""
        return self._failure is not None

    def submit(self, job: Job) -> None:
        """Begin `job(group)` and return; its collectives must use that group. Joins the job before, as `join` does."""
        self.join()
        self._thread = threading.Thread(target=self._run, args=(job,), name="background", daemon=True)
        _threads.add(self._thread)
        self._thread.start()

    def join(self) -> None:
        """Return when no job runs. Raises, once, what the last job raised on this rank."""
        if self._thread is not None:
            self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def _run(self, job: Job) -> None:
        try:
            self._set_device()
            job(self._group)
        except BaseException as error:
            self._failure = error


def any_running() -> bool:
    """True while a job of this process runs."""
    return any(thread.is_alive() for thread in list(_threads))


def join_all(seconds: float | None = None) -> None:
    """Wait for every job of this process, at most `seconds`: before its process groups end, or itself."""
    for thread in list(_threads):
        thread.join(seconds)
