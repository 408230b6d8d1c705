"""A forward and a backward on the meta device: every allocation is followed and every product counted, nothing computed.

The same modules run under the same autograd as in training, so what is kept, what is recomputed and what is only
there for a moment need no model of its own. Bytes are those of storages; what an allocator adds is not counted.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from opensora.models.layers.attention import SHORT_KEYS, softmax_attention
from opensora.models.layers.kernels import Attention, use_kernels
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.planning.meta_autocast import MetaAutocast, autocast_on_meta

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class MemoryPoint:
    """A stretch of a backward: after so many gradient elements were made, the most bytes alive until the next."""

    delivered: int
    live: int


@dataclass(frozen=True)
class StepProfile:
    """One micro-batch. Bytes do not count parameters, inputs, or gradients that are complete."""

    kept: int  # alive when the forward is done: what waits for the backward
    moments: tuple[MemoryPoint, ...]
    forward_flops: int
    backward_flops: int  # with what is computed again
    sent: int = 0  # bytes to the other ranks of a sequence group

    @property
    def peak(self) -> int:
        return max(moment.live for moment in self.moments)


def profile_step(
    model: Any,
    forward: Callable[[Any], Any],
    *,
    checkpointed: bool = False,
    autocast: bool = False,
    plain_softmax: bool = False,
) -> StepProfile:
    """Run `forward(model)` and the backward of a loss over its results; everything must lie on the meta device.

    checkpointed: the blocks' activations are recomputed; this and `autocast` change the model for good.

    autocast: matrix products in bfloat16, as engines run bf16. plain_softmax: half precision as on the CPU, where
    attention over few keys is two products and a softmax.
    """
    if autocast:
        for block in model.checkpoint_blocks():
            autocast_on_meta(block)
    if checkpointed:
        for block in model.checkpoint_blocks():
            # the mode around the forward does not reach what the backward computes again
            block.__class__ = _fusing(type(block))  # type: ignore[arg-type]
        checkpoint_activations(model.checkpoint_blocks())
    handles: list[Any] = []
    moments: list[MemoryPoint] = []
    delivered = 0
    parameters = [each for each in model.parameters() if each.requires_grad]
    with _kernels(plain_softmax):
        live = LiveBytes(model)

        def on_gradient(parameter: nn.Parameter) -> None:
            nonlocal delivered
            moments.append(MemoryPoint(delivered, live.take_peak()))
            delivered += parameter.numel()
            parameter.grad = None

        for parameter in parameters:
            handles.append(parameter.register_post_accumulate_grad_hook(on_gradient))
        try:
            with live:
                with _FusedEverywhere(), MetaAutocast() if autocast else nullcontext():
                    found = forward(model)
                loss = _loss(found)
                del found
                kept, once = live.now, live.flops
                loss.backward()
                moments.append(MemoryPoint(delivered, live.take_peak()))
        finally:
            for handle in handles:
                handle.remove()
    return StepProfile(kept, tuple(moments), once, live.flops - once)


def profile_forward(work: Callable[[], Any], *held: nn.Module) -> tuple[int, int]:
    """(peak bytes, operations) of `work` without gradients; the parameters of `held` are not counted."""
    with torch.no_grad(), _kernels(False), _FusedEverywhere(), LiveBytes(*held) as live:
        work()
        return live.take_peak(), live.flops


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, from their making to their end, and the products' arithmetic.

    torch's FlopCounterMode counts the same but holds on to what is computed again, so it cannot stand around a step.
    """

    def __init__(self, *held: nn.Module):
        super().__init__()
        self.now = 0  # bytes
        self.flops = 0
        self._peak = 0
        self._known: dict[int, int] = {}  # bytes of a storage, by its address
        self._ends: dict[int, ref] = {}
        self._held = [t.untyped_storage() for each in held for t in [*each.parameters(), *each.buffers()]]
        for storage in self._held:
            self._known[storage._cdata] = 0

    def take_peak(self) -> int:
        """The most bytes that were alive since the last call."""
        peak, self._peak = self._peak, self.now
        return peak

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _RULES.get(function, function)(*args, **(kwargs or {}))
        if function._overloadpacket in _FLOPS:
            self.flops += _FLOPS[function._overloadpacket](*args, **(kwargs or {}), out_val=found)
        for each in found if isinstance(found, list | tuple) else (found,):
            if isinstance(each, Tensor):
                self._see(each.untyped_storage())
        return found

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += self._known[key]
        self._peak = max(self._peak, self.now)
        self._ends[key] = ref(storage, partial(self._forget, key))

    def _forget(self, key: int, _: ref) -> None:
        self.now -= self._known.pop(key)
        del self._ends[key]


def _layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    ones = (1,) * len(shape)
    mean, rstd = (x.new_empty((*x.shape[: x.dim() - len(shape)], *ones), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, rstd


def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: Any, bias: Any, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    return tuple(
        torch.empty_like(each) if want and each is not None else None
        for each, want in zip((x, weight, bias), wanted, strict=True)
    )


# Importing colossalai puts rules of its own in place of torch's, and that of the backward fails on norms without weights.
# Torch's for the forward takes milliseconds, most of a rehearsal.
_RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward,
}


def _loss(found: Any) -> Tensor:
    """A number that every result depends on, as a squared error would."""
    parts = [each for each in tree_leaves(_fields(found)) if isinstance(each, Tensor) and each.requires_grad]
    return torch.stack([each.float().square().mean() for each in parts]).sum()


def _fields(found: Any) -> Any:
    """The tensors of a posterior beside a reconstruction."""
    if isinstance(found, tuple | list):
        return [_fields(each) for each in found]
    return found if isinstance(found, Tensor) else [getattr(found, name) for name in ("mean", "logvar")]


class _Meta:
    """Stands for an accelerator whose attention keeps no scores."""

    name = "meta"

    def __init__(self, kernel: Attention | None, short: bool):
        self._kernel, self._short = kernel, short

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Attention | None:
        if self._short and self._kernel is not None and dtype is torch.bfloat16:
            return _short_or_fused
        return self._kernel

    def layer_norm(self) -> None:
        return None

    def rms_norm(self) -> None:
        return None

    def pads_wrongly(self, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> bool:
        return False


@contextmanager
def _kernels(plain_softmax: bool) -> Iterator[None]:
    """Fused attention for meta tensors: without it torch takes plain products there, with all scores."""
    use_kernels(_Meta(fused_attention, plain_softmax))
    try:
        yield
    finally:
        use_kernels(_Meta(None, False))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The shapes of a fused kernel: the result and one number per query are kept, never the scores."""
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return _fused(q, k, v, 0.0, False, attn_mask=bias)[0]


class _FusedEverywhere(TorchFunctionMode):
    """Torch's own call of attention, as autoencoders make it, with the shapes of a fused kernel as well."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention and len(args) >= 3 and args[0].is_meta:
            return fused_attention(args[0], args[1], args[2], (kwargs or {}).get("attn_mask"))
        return function(*args, **(kwargs or {}))


@functools.cache
def _fusing(block_class: type[nn.Module]) -> type[nn.Module]:
    """The same block under `_FusedEverywhere`, wherever it is called."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _FusedEverywhere():
            return block_class.forward(self, *args, **kwargs)

    return type(block_class.__name__, (block_class,), {"forward": forward})


def _short_or_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return (softmax_attention if k.shape[-2] <= SHORT_KEYS else fused_attention)(q, k, v, mask)


def _attention_flops(q: Tensor, k: Tensor, *rest: Any, **options: Any) -> int:
    """Two products of [N, d] and [d, M] for each head (Dao et al. 2022, arXiv:2205.14135, sec. 2.2)."""
    return 4 * q.numel() * k.shape[-2]


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, *rest: Any, **options: Any) -> int:
    """Four products, and the scores once more."""
    return 10 * q.numel() * k.shape[-2]


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _fused: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
