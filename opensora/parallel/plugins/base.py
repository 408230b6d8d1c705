"""Plugin: the base class of the ways to share a training step between ranks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, cast

from torch import nn

from opensora.parallel.engine import Engine, EngineOptions
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic
from opensora.parallel.world import World
from opensora.registry import PLUGINS, constructor


class Plugin(ABC):
    """An entry of PLUGINS: built from `plugin_config`, then applied to each model that trains.

    Everything that the rest of the project knows of a plugin is here, so a new one is one file.
    """

    refused_tasks: ClassVar[Mapping[str, str]] = {}  # task -> reason why the plugin cannot train it
    autocasts: ClassVar[bool] = False  # bf16 runs keep float32 weights and cast them under autocast
    shares_tokens: ClassVar[bool] = False  # without sp_size in the config the ranks of a machine share each sample
    in_search: ClassVar[bool] = True  # `opensora check` tries it when it looks for the smallest layout
    tp_size: int = 1  # ranks that share the heads of each block

    def check(self, world: World) -> None:  # noqa: B027 - most plugins run everywhere
        """Raise ConfigError when it cannot run here with its options; called before weights are read."""

    @abstractmethod
    def apply(self, model: nn.Module, options: EngineOptions) -> Engine:
        """Move `model` to the rank's device, share it, and return the engine."""

    @abstractmethod
    def memory(self, sizes: StepSizes) -> StepMemory:
        """Bytes of one rank in a step."""

    @abstractmethod
    def traffic(self, sizes: StepSizes) -> Traffic:
        """Bytes that one rank sends in a step, without those for shared samples."""


def plugin_class(name: str) -> type[Plugin]:
    """The class registered as `name`."""
    return cast(type[Plugin], constructor(PLUGINS, name))
