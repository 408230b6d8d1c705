"""Adapter to ColossalAI's low-level ZeRO; no other file uses its private attributes.

The classes are made inside functions because colossalai is optional.
Written against colossalai 0.5.0.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import proxy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from opensora.parallel import collectives
from opensora.parallel.engine import squared_norm
from opensora.parallel.reducer import OrderedEmitter
from opensora.registry import PLATFORMS, names


def boost(
    model: nn.Module, optimizer: Optimizer, *, stage: int, precision: str, **options: object
) -> tuple[Any, Any, Any]:
    """(booster, model, optimizer) with ZeRO of `stage`; `model` must be on its device already, in float32."""
    from colossalai.booster import Booster

    plugin = _plugin_class()(stage=stage, precision=precision, cast_inputs=False, **options)
    booster = Booster(plugin=plugin)
    boosted_model, boosted_optimizer, *_ = booster.boost(model, optimizer)
    return booster, boosted_model, boosted_optimizer


@functools.cache
def _plugin_class() -> type:
    from colossalai.booster.plugin import LowLevelZeroPlugin
    from colossalai.booster.plugin.low_level_zero_plugin import LowLevelZeroModel

    class ZeroPlugin(LowLevelZeroPlugin):
        """Shim S2: builds our optimizer, which is not tied to device names."""

        def supported_devices(self) -> list[str]:
            return names(PLATFORMS)

        def configure(
            self,
            model: nn.Module,
            optimizer: Optimizer | None = None,
            criterion: object = None,
            dataloader: object = None,
            lr_scheduler: object = None,
        ) -> tuple[nn.Module, Optimizer, object, object, object]:
            wrapped = LowLevelZeroModel(
                model,
                self.precision,
                overlap_allgather=self.zero_optim_kwargs["overlap_allgather"],
                cast_inputs=self.cast_inputs,
                use_fp8=self.use_fp8,
            )
            zero = _optimizer_class()(
                optimizer, **self.zero_optim_kwargs, verbose=self.verbose, backward_context=wrapped._hook_context
            )
            return wrapped, zero, criterion, dataloader, lr_scheduler

    return ZeroPlugin


@functools.cache
def _optimizer_class() -> type:
    from colossalai.zero import LowLevelZeroOptimizer

    class ZeroOptimizer(LowLevelZeroOptimizer):
        """ZeRO that accepts parameters without a gradient, and measures the gradient norm before it steps.

        Gradients are exchanged and added up in float32 even when the model runs in bfloat16, so that a run depends
        as little as possible on the number of ranks.
        """

        def __init__(self, optimizer: Optimizer, **options: object):
            self._earlier: dict[int, Tensor] = {}  # by id: gradients of micro-batches that were not exchanged yet
            self._used: set[int] = set()  # by id: parameters that this rank's samples touched in this step
            self.clip_factor = 1.0  # the gradients are multiplied by it in `step`
            super().__init__(optimizer, **options)
            # the buckets of the base class add up in the model's dtype
            size = options["reduce_bucket_size"]
            self.pg_to_bucket_store = {
                group: _bucket_class()(group, size, self._earlier) for group in self.pg_to_param_list
            }
            self.pid_to_bucket_store = {
                id(parameter): self.pg_to_bucket_store[group] for parameter, group in self.param_to_pg.items()
            }

        def _sanity_checks(self) -> None:
            for group in self.optim.param_groups:
                for parameter in group["params"]:
                    if parameter.dtype != self._dtype:
                        raise TypeError(f"zero: parameters of {parameter.dtype} and {self._dtype} in one model")

        # Backward. The base class sends a gradient when it arrives, so ranks whose samples touch different parameters
        # would wait for different exchanges. Here all ranks send all gradients in one order, a missing one as zeros.

        def _attach_reduction_hook(self) -> None:
            this = proxy(self)  # a hook with a reference to the optimizer would keep it alive forever

            def on_gradient(parameter: nn.Parameter) -> None:
                if this.require_grad_sync:
                    this._fixed_order.ready(parameter)

            for group in self._working_param_groups.values():
                for parameter in group:
                    self.grad_handles.append(parameter.register_post_accumulate_grad_hook(on_gradient))

        @functools.cached_property
        def _fixed_order(self) -> OrderedEmitter:
            this = proxy(self)
            groups = {
                id(parameter): number for number, group in self._working_param_groups.items() for parameter in group
            }
            parameters = [parameter for group in self._working_param_groups.values() for parameter in group]

            def emit(parameter: nn.Parameter) -> None:
                if parameter.grad is not None or id(parameter) in this._earlier:
                    this._used.add(id(parameter))
                if parameter.grad is None:  # all ranks must send something
                    parameter.grad = torch.zeros_like(parameter)
                this._add_to_bucket(parameter, groups[id(parameter)])

            return OrderedEmitter(parameters[::-1], emit)  # a backward reaches the last layers first

        def _reduce_grad(self, partition_grad: bool) -> None:
            self._fixed_order.flush()  # those that got no gradient in this backward
            self._run_reduction()

        def keep_local(self) -> None:
            """Add up the gradients of a backward that exchanged nothing, in float32, as bfloat16 loses small ones."""
            for group in self._working_param_groups.values():
                for parameter in group:
                    if parameter.dtype is not torch.float32 and parameter.grad is not None:
                        earlier = self._earlier.get(id(parameter))
                        total = parameter.grad.float() if earlier is None else earlier.add_(parameter.grad)
                        self._earlier[id(parameter)] = total
                        parameter.grad = None

        # Step, in two phases, so that the training loop can decide between them, over several engines.

        def squared_grad_norm(self) -> Tensor:
            """Phase one: the sum of squares of all gradients over all ranks, on the CPU. All ranks call, once a step."""
            self._drop_unused()
            shards = [
                gradient
                for store in self.pg_to_grad_store.values()
                for group in range(self.num_param_groups)
                for gradient in store.get_working_grads_by_group_id(group)
            ]
            return collectives.sum_over_ranks(squared_norm(shards))

        def _drop_unused(self) -> None:
            """Drop the zeros of parameters that no rank touched: the optimizer must leave these alone."""
            parameters = [parameter for group in self._working_param_groups.values() for parameter in group]
            used = torch.tensor([int(id(parameter) in self._used) for parameter in parameters])
            for parameter, count in zip(parameters, collectives.sum_over_ranks(used), strict=True):
                if not count:
                    for gradients in self.pid_to_grad_store[id(parameter)]._grads_of_params.values():
                        gradients.pop(id(parameter), None)
            self._used.clear()

        # Phase two is `step` of the base class and then `zero_grad`, or `zero_grad` alone.

        def _compute_grad_norm(self, dp_pg: object, gradients: list[Tensor], norm_type: int = 2) -> float:
            return 0.0  # phase one has measured already

        def _unscale_and_clip_grads(self, grad_groups_flat: list[Tensor], total_norm: float) -> None:
            if self.clip_factor < 1 and grad_groups_flat:
                torch._foreach_mul_(grad_groups_flat, self.clip_factor)

        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)
            self._earlier.clear()
            self._used.clear()

    return ZeroOptimizer


@functools.cache
def _bucket_class() -> type:
    from colossalai.zero.low_level.bookkeeping import BucketStore

    class Float32Buckets(BucketStore):
        """Takes gradients in float32, together with those of earlier micro-batches in `earlier`."""

        def __init__(self, torch_pg: dist.ProcessGroup, reduce_bucket_size: int, earlier: dict[int, Tensor]):
            super().__init__(torch_pg, reduce_bucket_size)
            self._earlier = earlier

        def build_grad_in_bucket(self) -> None:
            for parameter, padding in zip(self._param_list, self._padding_size, strict=True):
                flat = parameter.grad.detach().flatten().float()
                earlier = self._earlier.pop(id(parameter), None)
                if earlier is not None:
                    flat = flat + earlier.flatten()
                flat = nn.functional.pad(flat, (0, padding))
                for rank, part in enumerate(flat.split(flat.numel() // self.world_size)):
                    shard = part.detach()  # the store and the mapping must hold one object, as it is found by id
                    self.grad_to_param_mapping[id(shard)] = id(parameter)
                    self._grad_in_bucket[rank].append(shard)
                parameter.grad = None
            self.offset_list.append(0)

    return Float32Buckets


class _BoostedOptimizer(Protocol):
    """The shards of ColossalAI's ZeRO optimizer."""

    _working_param_to_padded_working_param: Mapping[Tensor, Tensor]

    def get_working_to_master_map(self) -> Mapping[int, Tensor]: ...


class ZeroShards:
    """Reads and writes a boosted optimizer's shards by parameter."""

    def __init__(self, optimizer: _BoostedOptimizer):
        self._optimizer = optimizer

    def master(self, parameter: nn.Parameter) -> Tensor:
        """This rank's flat float32 shard of `parameter`, padded at the end to the length every rank has."""
        return self._optimizer.get_working_to_master_map()[id(parameter)]

    @staticmethod
    def own(parameter: nn.Parameter, padded: Tensor) -> Tensor:
        """The part of a padded shard that is not padding: a view, possibly empty."""
        before = collectives.rank() * padded.numel()
        return padded.detach().view(-1)[: max(0, min(padded.numel(), parameter.numel() - before))]

    @torch.no_grad()
    def sync_from_masters(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gather the masters into the working weights."""
        for parameter in parameters:
            piece = self.master(parameter).to(parameter.device, parameter.dtype)
            padded = self._optimizer._working_param_to_padded_working_param[parameter]
            collectives.gather_into(padded, piece)
