"""hybrid: heads and hidden units of each block over `tp_size` ranks, data over the others, through ColossalAI."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.tensor_policy import boost
from opensora.parallel.engine import Engine, EngineOptions, PrecisionWrapper, broadcast_and_move, squared_norm
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.reducer import Reducer
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic, replicated_memory, ring_elements
from opensora.parallel.tensor_parallel import check_heads, partial_grad_names, tensor_shards
from opensora.parallel.world import World
from opensora.registry import PLUGINS


@PLUGINS.register_module(name="hybrid")
class Hybrid(Plugin):
    """Tensor parallelism x sequence parallelism (`sp_size`) x data parallelism; bf16 runs the forward under autocast.

    tp_size: ranks that share the heads of each block; they see the same samples. Parameters, gradients and optimizer
    state of attention and perceptrons are cut; the rest is whole on every rank. pp_size: ranks in a row that each have
    some of the blocks; 1 only. bucket_cap_mb: as in ddp.
    """

    autocasts = True
    in_search = False  # with tp_size=1 it costs what ddp costs

    def __init__(self, tp_size: int = 1, pp_size: int = 1, bucket_cap_mb: int = 25):
        if tp_size < 1:
            raise ConfigError(f"plugin_config.tp_size: {tp_size} found; allowed: 1 and more; remove the key for 1")
        if pp_size != 1:
            raise ConfigError(
                f"plugin_config.pp_size: {pp_size} found; allowed: 1; ColossalAI runs pipelines of language models and of "
                "their losses, which no denoiser here is; use tp_size, sp_size or plugin 'fsdp'"
            )
        if bucket_cap_mb < 1:
            raise ConfigError(
                f"plugin_config.bucket_cap_mb: {bucket_cap_mb} found; allowed: 1 and more MiB; remove the key for 25"
            )
        self.tp_size = tp_size
        self.bucket_bytes = bucket_cap_mb * 2**20

    def check(self, world: World) -> None:
        """ConfigError without colossalai, and when the ranks that share a sample are not a multiple of tp_size."""
        import_colossalai()
        if world.sequence_size % self.tp_size:
            raise ConfigError(
                f"plugin_config.tp_size: {self.tp_size}, but the ranks share samples in groups of {world.sequence_size}; "
                f"allowed: groups of a multiple of {self.tp_size} ranks; start a number of ranks that tp_size divides"
            )

    def apply(self, model: nn.Module, options: EngineOptions) -> "HybridEngine":
        self.check(options.world)
        check_heads(model, self.tp_size)
        broadcast_and_move(model, options.world.device)
        return HybridEngine(model, options, self.tp_size, self.bucket_bytes)

    def memory(self, sizes: StepSizes) -> StepMemory:
        whole, shard = self._elements(sizes)
        if sizes.ranks > self.tp_size:  # other ranks hold the same shard
            averaged = whole + shard
        else:
            averaged = whole if sizes.ranks > 1 else 0
        return replicated_memory(sizes, whole + shard, averaged)

    def traffic(self, sizes: StepSizes) -> Traffic:
        """All-reduces of float32 gradients: of whole parameters over all ranks, of a shard over those that hold it."""
        whole, shard = self._elements(sizes)
        over_all = int(2 * 4 * ring_elements(whole, sizes.ranks))
        return Traffic(gradients=over_all + int(2 * 4 * ring_elements(int(shard), sizes.ranks // self.tp_size)))

    def _elements(self, sizes: StepSizes) -> tuple[int, float]:
        """Trained elements on one rank: those that every rank holds whole, and its shard of the others."""
        sharded = sizes.tensor_sharded if self.tp_size > 1 else 0
        return sizes.trained - sharded, sharded / self.tp_size


class HybridEngine(Engine):
    def __init__(self, module: nn.Module, options: EngineOptions, tensor_size: int, bucket_bytes: int):
        super().__init__(module, options)
        world = self.world
        set_accelerator(world.device)
        self._booster, wrapped, plugin = boost(module, tensor_size, world.sequence_size // tensor_size, world.timeout)
        self._tensor_size, self._tensor_group = tensor_size, plugin.tp_group
        self.model = PrecisionWrapper(wrapped, options.dtype, world.device, bf16_weights=False)
        self._set_optimizer(options.make_optimizer(list(self.trainable.values())))
        # Parameters whose heads or hidden units are cut over the tensor group, and those that every rank holds whole.
        self._specs = {name: spec for name, spec in tensor_shards(module).items() if name in self.trainable}
        self._partial = [self.trainable[name] for name in sorted(partial_grad_names(module) & self.trainable.keys())]
        self._sharded = [each for name, each in self.trainable.items() if name in self._specs]
        self._whole = [each for name, each in self.trainable.items() if name not in self._specs]
        # Whole ones are averaged over all ranks, so that they cannot drift apart; a shard only over the ranks that hold
        # the same shard.
        groups = {id(each): plugin.mixed_dp_group for each in self._sharded}
        self._reducer = Reducer(list(self.trainable.values()), bucket_bytes, groups)

    # One step.

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        with self._reducer.averaging(last):
            yield
        if last and self._tensor_size > 1:
            for parameter in self._partial:
                if parameter.grad is not None:
                    # each rank of the tensor group saw some of the heads: the gradient is the sum over these ranks, and
                    # the mean over all ranks has divided it by their number
                    parameter.grad.mul_(self._tensor_size)

    def _squared_grad_norm(self) -> Tensor:
        whole, sharded = (
            [each.grad for each in part if each.grad is not None] for part in (self._whole, self._sharded)
        )
        # whole gradients are equal on all ranks and count once; shards add up over the tensor group
        return squared_norm(whole) + collectives.sum_over_ranks(squared_norm(sharded), self._tensor_group)

    # State: a checkpoint holds whole parameters, cut evenly over all ranks.

    def to_even_shards(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: collectives.shard(self._gather(name, shard).flatten()).clone() if name in self._specs else shard
            for name, shard in shards.items()
        }

    def from_even_shards(self, shards: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        for name, shard in shards.items():
            part = even[name]
            if name in self._specs:
                whole = collectives.gather_shards(part, self.shapes[name].numel()).view(self.shapes[name])
                part = self._specs[name].shard(whole).flatten()
            shard.copy_(part)

    def _gather(self, name: str, shard: Tensor) -> Tensor:
        return self._specs[name].gather(shard.view(self.trainable[name].shape))

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        flat = tensor.detach().view(-1)
        return flat if name in self._specs else collectives.shard(flat)

    def _sync_from_masters(self) -> None:
        self._gather_replicas(name for name in self.trainable if name not in self._specs)
