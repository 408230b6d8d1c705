"""ddp: every rank holds the whole model and optimizer; gradients are averaged."""

from contextlib import AbstractContextManager

from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.engine import Engine, EngineOptions, PrecisionWrapper, broadcast_and_move
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.reducer import Reducer
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic, replicated_memory, ring_elements
from opensora.registry import PLUGINS


@PLUGINS.register_module(name="ddp")
class DataParallel(Plugin):
    """bf16 runs the forward under autocast: the parameters stay float32 and are their own masters.

    bucket_cap_mb: gradients are sent in buckets of this many MiB, while the backward still runs.
    """

    autocasts = True

    def __init__(self, bucket_cap_mb: int = 25):
        if bucket_cap_mb < 1:
            raise ConfigError(
                f"plugin_config.bucket_cap_mb: {bucket_cap_mb} found; allowed: 1 and more MiB; remove the key for 25"
            )
        self.bucket_bytes = bucket_cap_mb * 2**20

    def apply(self, model: nn.Module, options: EngineOptions) -> "DataParallelEngine":
        broadcast_and_move(model, options.world.device)
        return DataParallelEngine(model, options, self.bucket_bytes)

    def memory(self, sizes: StepSizes) -> StepMemory:
        return replicated_memory(sizes, local=sizes.trained, averaged=sizes.trained if sizes.ranks > 1 else 0)

    def traffic(self, sizes: StepSizes) -> Traffic:
        """One all-reduce of float32 gradients."""
        return Traffic(gradients=int(2 * 4 * ring_elements(sizes.trained, sizes.ranks)))


class DataParallelEngine(Engine):
    def __init__(self, module: nn.Module, options: EngineOptions, bucket_bytes: int):
        super().__init__(module, options)
        parameters = list(self.trainable.values())
        self.model = PrecisionWrapper(module, options.dtype, self.world.device, bf16_weights=False)
        self._set_optimizer(options.make_optimizer(parameters))
        self._reducer = Reducer(parameters, bucket_bytes)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return self._reducer.averaging(last)

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        return collectives.shard(tensor.detach().view(-1))

    def _sync_from_masters(self) -> None:
        self._gather_replicas(self.trainable)
