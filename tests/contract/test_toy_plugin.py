"""A plugin is one file: a toy plugin defined only here trains and is planned, searched and refused like the others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

from opensora.cli.check import check_command
from opensora.cli.check_layouts import searched_plugins
from opensora.config import load
from opensora.errors import ConfigError
from opensora.parallel.engine import Engine, EngineOptions
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.plugins.ddp import DataParallelEngine
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic
from opensora.planning.dry_run import dry_run
from opensora.registry import PLUGINS, names
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from tests.dist import one_rank
from tests.support.command import ROOT, TRAIN

CONFIG = str(ROOT / TRAIN)


class Toy(Plugin):
    """DDP that declares three bytes of state and one sent byte for each parameter."""

    refused_tasks: ClassVar[Mapping[str, str]] = {"autoencoder": "it is a toy"}
    autocasts = True

    def __init__(self, buckets: int = 2):
        if buckets < 1:
            raise ConfigError(f"plugin_config.buckets: {buckets} found; allowed: 1 and more; remove the key for 2")
        self.buckets = buckets

    def apply(self, model: nn.Module, options: EngineOptions) -> Engine:
        return DataParallelEngine(model.to(options.world.device), options, 2**20)

    def memory(self, sizes: StepSizes) -> StepMemory:
        return StepMemory(
            state={"toy state": 3 * sizes.trained},
            waiting=0,
            backward=lambda elements: (elements, self.buckets),
            update=[(sizes.trained, 0)],
            update_bytes=5 * sizes.trained,
        )

    def traffic(self, sizes: StepSizes) -> Traffic:
        return Traffic(gradients=0 if sizes.ranks == 1 else sizes.trained)


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    names(PLUGINS)  # registers all others first
    PLUGINS.register_module(name="toy", module=Toy)
    try:
        yield
    finally:
        del PLUGINS.module_dict["toy"]


def run_of(*overrides: str) -> TrainRun:
    return load(CONFIG, ["plugin=toy", *overrides], TrainRun).run


def test_toy_plugin_trains_one_step(tmp_path: Path) -> None:
    run = run_of(f"run_dir={str(tmp_path)!r}", "steps=1", "log_every=1", "dtype=fp32")
    with one_rank() as world:
        state = build_training(run, world, CONFIG)
        assert isinstance(state.engine, DataParallelEngine)
        assert train(state)
        state.metrics.close()
    assert len([record for record in read(tmp_path / "metrics.jsonl") if "loss" in record]) == 1


def test_toy_plugin_states_its_costs() -> None:
    result = dry_run(run_of("ema_decay=None", "plugin_config.buckets=7"), world=2)
    trained = result.step.sizes.trained
    assert result.estimate.memory["toy state"] == 3 * trained
    assert result.estimate.traffic == Traffic(gradients=trained)
    assert result.estimate.update_bytes == 5 * trained
    assert result.estimate.layout.describe().endswith("plugin_config.buckets=7")


def test_toy_plugin_is_checked_and_is_the_smallest_layout(capsys: pytest.CaptureFixture[str]) -> None:
    """It sends the fewest bytes of all plugins on two ranks."""
    assert check_command(CONFIG, ["plugin=toy", "world=2", "gpu=h100"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "toy state" in text
    assert "this layout (plugin=toy sp_size=1" in text
    assert "smallest layout that fits: plugin=toy sp_size=1" in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["plugin_config.buckets=0"], r"plugin_config.buckets.* found 0"),
        (["plugin_config.tp_size=2"], r"plugin_config.tp_size"),
    ],
)
def test_toy_plugin_refuses_options(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_command(CONFIG, ["plugin=toy", *overrides])


def test_toy_plugin_refuses_a_task() -> None:
    config = str(ROOT / "configs/vae/train/debug.py")
    with pytest.raises(ConfigError, match=r"'plugin': found 'toy' for task 'autoencoder'.*a toy; allowed: ddp, hybrid"):
        load(config, ["plugin=toy"], TrainRun)
    assert "toy" in searched_plugins("diffusion")
    assert "toy" not in searched_plugins("autoencoder")
    assert searched_plugins("diffusion") == ["ddp", "fsdp", "toy", "zero1", "zero1-seq", "zero2", "zero2-seq"]
