"""A CUDA device that computes nothing, on a machine without one: the same code runs, and what it does is counted.

Tensors on "cuda" are FakeTensors: they have a shape, a type and a device. Tensors on the CPU are real. So a whole
optimizer step runs as on a GPU: torch's own autocast lists for CUDA, its autograd engine, the plugins, ColossalAI, FSDP.

Not as on a GPU:
- A copy to the host holds ones, whatever the device "computed"; a loss of a step is 1.0.
- Attention: on a GPU torch chooses the kernel by the device. Here unmasked half precision is the flash kernel, all else the
  memory-efficient one. Packages with kernels of their own (flash-attn, apex) do not run.
- Streams do nothing: the order of kernels on two streams cannot be seen.
- An operation that torch makes of several kernels counts once.
"""

import ctypes
import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from opensora.models.layers import kernels
from opensora.parallel import world
from opensora.parallel.colossal.accelerator import NoStream
from opensora.platforms.cuda import CudaPlatform

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
NO_KERNEL = {
    *("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"),
    *("detach", "_local_scalar_dense", "record_stream", "set_"),
}


@dataclass(frozen=True)
class Op:
    """One operation that concerns the device, or a collective."""

    name: str
    kind: str  # "kernel", "view", "to host", "to device", "collective"
    outputs: tuple[Tensor, ...] = ()
    group: str = ""
    numel: int = 0
    dtype: str = ""
    device: str = ""


class FakePlatform(CudaPlatform):
    """CUDA with eight devices per machine; the CPU part and the device part of a group do nothing."""

    backend = "cpu:fake,cuda:fake"

    @classmethod
    def is_available(cls) -> bool:
        return True

    def device(self, local_rank: int = 0) -> torch.device:
        return DEVICE

    def device_count(self) -> int:
        return 8

    def multiplies_bf16(self) -> bool:
        return True


class Recorder(TorchDispatchMode):
    """Runs what touches the device on fakes, all else for real; `ops` is the list of what happened on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.keep_outputs = False

    def take(self) -> list[Op]:
        """The operations since the last call."""
        ops, self.ops = self.ops, []
        return ops

    def __torch_dispatch__(
        self, function: OpOverload, types: Collection[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is torch.ops.prim.device.default:  # most of all calls
            return args[0].device
        kwargs = kwargs or {}
        leaves = _leaves(args, [])
        leaves = _leaves(tuple(kwargs.values()), leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_device = any(isinstance(each, FakeTensor) for each in tensors)
        if function.namespace in ("c10d", "_c10d_functional"):
            self._note_collective(function, tensors, leaves)
        elif not on_device and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            self._note("item", "to host", tensors[0])
            return 1.0 if tensors[0].is_floating_point() else 1
        if function is aten._to_copy.default and on_device and _target(kwargs).type == "cpu":
            self._note("copy", "to host", tensors[0])
            return _ones(tensors[0].shape, kwargs.get("dtype") or tensors[0].dtype)
        if function is aten.copy_.default and on_device and not isinstance(args[0], FakeTensor):
            self._note("copy", "to host", tensors[1])
            return args[0].fill_(1)
        if function in (aten._to_copy.default, aten.copy_.default) and not isinstance(tensors[-1], FakeTensor):
            waits = not (kwargs.get("non_blocking") or args[2:] == (True,))
            self._note("copy" if waits else "copy without waiting", "to device", tensors[-1])
            return function(*args, **kwargs)
        if function.namespace in ("c10d", "_c10d_functional") and not on_device:
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if function.namespace == "aten":
            made = _leaves([result], []) if self.keep_outputs else []
            tensors = [each for each in made if isinstance(each, Tensor)]
            self.ops.append(Op(_name(function), _kind(function), tuple(tensors)))
        return result

    def _note(self, name: str, kind: str, tensor: Tensor) -> None:
        self.ops.append(Op(name, kind, numel=tensor.numel(), dtype=str(tensor.dtype).removeprefix("torch.")))

    def _note_collective(self, function: OpOverload, tensors: list[Tensor], leaves: list[Any]) -> None:
        scripts = [leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject)]
        groups = [each for each in map(_unboxed, scripts) if each is not None]
        devices = {each.device.type for each in tensors}
        name = _name(function).strip("_")
        assert len(devices) == 1, f"{name}: tensors on {sorted(devices)}"
        assert current_thread() is main_thread(), f"{name}: sent from thread {current_thread().name}"
        first = max(tensors, key=lambda tensor: tensor.numel())
        group = ",".join(map(str, dist.get_process_group_ranks(groups[0]))) if groups else "?"
        dtype = str(first.dtype).removeprefix("torch.")
        self.ops.append(Op(name, "collective", (), group, first.numel(), dtype, *devices))


def _leaves(values: Sequence[Any], leaves: list[Any]) -> list[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            _leaves(value, leaves)
        else:
            leaves.append(value)
    return leaves


def _unboxed(script: torch.ScriptObject) -> Any:
    try:
        return dist.ProcessGroup.unbox(script)
    except RuntimeError:  # an object of another class
        return None


@functools.cache
def _name(function: OpOverload) -> str:
    return function._overloadpacket.__name__


@functools.cache
def _kind(function: OpOverload) -> str:
    returns = function._schema.returns
    view = bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)
    return "view" if view or _name(function) in NO_KERNEL else "kernel"


def _target(kwargs: dict[str, Any]) -> torch.device:
    return torch.device(kwargs.get("device") or DEVICE)


def _ones(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    with unset_fake_temporarily():
        return torch.ones(shape, dtype=dtype)


class FusedAttention(TorchFunctionMode):
    """Torch's attention as a fused kernel of a GPU: without a device torch would choose plain products."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Collection[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            return _fused_attention(*args, mask=kwargs.get("attn_mask"))
        return function(*args, **kwargs)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (each.to(torch.get_autocast_dtype("cuda")) for each in (q, k, v))
    if mask is None and q.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]


@contextmanager
def fake_cuda(rank: int = 0, size: int = 1, sp_size: int = 1) -> Iterator[Recorder]:
    """This process is one of `size` ranks, each with a fake CUDA device; the others do not exist.

    Everything on a device is made inside; backward runs on this thread.
    """
    recorder = Recorder()
    with ExitStack() as stack:
        fakes = FakeTensorMode(allow_non_fake_inputs=True)  # before the patches: it looks for a device
        stack.enter_context(_without_primary_context())
        stack.enter_context(_cuda_module(recorder))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _move))
        stack.enter_context(mock.patch.dict(kernels._by_device))
        kernels.use_kernels(FakePlatform())
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(fakes)
        stack.enter_context(recorder)
        stack.enter_context(FusedAttention())
        stack.callback(world.shutdown)
        world.init_process_group(FakeStore(), rank, size, rank % 8, FakePlatform(), 60, sp_size)
        yield recorder


@contextmanager
def _cuda_module(recorder: Recorder) -> Iterator[None]:
    """torch.cuda as far as a step uses it."""

    def synchronize(device: object = None) -> None:
        recorder.ops.append(Op("synchronize", "to host"))

    @contextmanager
    def stream(which: object) -> Iterator[None]:
        yield

    cuda: dict[str, Any] = {
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "device_count": lambda: 8,
        "synchronize": synchronize,
        "Stream": lambda *args, **options: NoStream(),
        "Event": lambda *args, **options: NoStream(),
        "current_stream": lambda device=None: NoStream(),
        "default_stream": lambda device=None: NoStream(),
        "stream": stream,
    }
    c10d = dist.distributed_c10d
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(
            mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False)
        )
        stack.enter_context(mock.patch.object(Tensor, "record_stream"))
        for name in ("_object_to_tensor", "_tensor_to_object"):
            stack.enter_context(mock.patch.object(c10d, name, _on_host(getattr(c10d, name))))
        yield


def _on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pickled objects lie in real storages."""

    def on_host(*args: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args)

    return on_host


def _move(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which swaps a fake parameter with its copy and fails where a hook refers to it."""
    for child in module.children() if recurse else ():
        _move(child, convert)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            moved = convert(parameter)
        if isinstance(moved, FakeTensor) and not isinstance(parameter, FakeTensor):
            module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        else:
            parameter.data = moved
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)
    return module


@contextmanager
def _without_primary_context() -> Iterator[None]:
    """Have autograd find a context on the device.

    A backward over CUDA tensors calls torch's CUDA hooks for it; in a build with CUDA they raise where there is no driver.
    No setting changes that, so the object of the hooks gets a copy of its table of methods with another answer.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if torch.cuda.is_available() or not path.is_file():
        yield
        return
    library = ctypes.CDLL(str(path))
    get_hooks = library._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(get_hooks())
    before = hooks.value
    assert before is not None
    header, entries = 2, 48  # the offset and the type lie before the methods
    width = ctypes.sizeof(ctypes.c_void_p)
    table = (ctypes.c_void_p * (header + entries)).from_buffer_copy(
        ctypes.string_at(before - header * width, (header + entries) * width)
    )
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: True)
    table[header + _method_index("hasPrimaryContext")] = ctypes.cast(answer, ctypes.c_void_p).value
    hooks.value = ctypes.addressof(table) + header * width
    try:
        yield
    finally:
        hooks.value = before


def _method_index(name: str) -> int:
    """The place of a method in the tables of torch's hooks, by torch's own header."""
    header = Path(torch.__file__).parent / "include/ATen/detail/AcceleratorHooksInterface.h"
    methods = re.findall(r"^\s*virtual [^;{]*?(~?\w+)\(", header.read_text(), re.MULTILINE)
    assert methods[0].startswith("~")  # a destructor has two entries
    return methods.index(name) + 1
