"""ParallelLayout: a plugin, its options, and the numbers of ranks that divide a step."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from opensora.parallel.plugins.base import Plugin, plugin_class
from opensora.parallel.step_costs import StepSizes
from opensora.registry import PLUGINS, build
from opensora.types import DTYPES


@dataclass(frozen=True)
class ParallelLayout:
    """The division of a step between ranks; the keys are those of the config where it has them."""

    plugin: str
    world: int
    micro_batches: int  # of one rank and step
    plugin_config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bf16"
    sp_size: int = 1
    sp_mode: str = "dsp"
    grad_checkpoint: bool = False
    gloo: bool = False  # the ranks are processes on CPUs

    @cached_property
    def built(self) -> Plugin:
        return build(PLUGINS, {"type": self.plugin, **self.plugin_config})

    @property
    def tp_size(self) -> int:
        """Ranks that share the heads and hidden units of a block."""
        return self.built.tp_size

    @property
    def data_size(self) -> int:
        return self.world // (self.sp_size * self.tp_size)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the weights that the model runs with."""
        return torch.float32 if self.built.autocasts else DTYPES[self.dtype]

    @property
    def autocast(self) -> bool:
        """True if matrix products narrow float32 weights to bfloat16."""
        return self.dtype == "bf16" and self.built.autocasts

    def step_sizes(self, model: StepSizes) -> StepSizes:
        """The sizes of a module with the ranks and micro-batches of this layout."""
        return replace(model, ranks=self.world, micro_batches=self.micro_batches, dtype=self.dtype, gloo=self.gloo)

    def with_plugin(self, plugin: str, **options: object) -> "ParallelLayout":
        """The same division under another plugin, which keeps those options that it takes."""
        config = {**self.plugin_config, **options}
        return replace(
            self, plugin=plugin, plugin_config={key: config[key] for key in _parameters(plugin) if key in config}
        )

    def describe(self) -> str:
        """The layout as settings of a config, without options that are the plugin's defaults."""
        words = [f"plugin={self.plugin}", f"sp_size={self.sp_size}", f"grad_checkpoint={self.grad_checkpoint}"]
        for key, parameter in _parameters(self.plugin).items():
            if self.plugin_config.get(key, parameter.default) != parameter.default:
                words.append(f"plugin_config.{key}={self.plugin_config[key]}")
        return " ".join(words)


def takes_option(plugin: str, key: str) -> bool:
    return key in _parameters(plugin)


def _parameters(plugin: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(plugin_class(plugin)).parameters
