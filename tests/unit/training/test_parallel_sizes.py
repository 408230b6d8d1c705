from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora.config import load
from opensora.errors import ConfigError
from opensora.schema import TrainRun
from opensora.training.parallel_sizes import sequence_size

DEBUG = str(Path(__file__).resolve().parents[3] / "configs/stdit/train/debug.py")


@pytest.fixture(scope="module")
def run() -> TrainRun:
    return load(DEBUG, ["run_dir=unused"], TrainRun).run


def test_ranks_that_share_a_sample_share_its_tokens_or_heads(run: TrainRun) -> None:
    assert sequence_size(run, 8, 4, "run.py") == 1
    assert sequence_size(replace(run, sp_size=2), 8, 4, "run.py") == 2
    assert sequence_size(replace(run, plugin="zero2-seq"), 8, 4, "run.py") == 4
    hybrid = replace(run, plugin="hybrid", plugin_config={"tp_size": 2})
    assert sequence_size(hybrid, 8, 4, "run.py") == 2
    assert sequence_size(replace(hybrid, sp_size=4), 8, 4, "run.py") == 8


def test_sizes_that_do_not_divide_the_ranks_are_refused(run: TrainRun) -> None:
    hybrid = replace(run, plugin="hybrid", plugin_config={"tp_size": 3})
    with pytest.raises(ConfigError, match=r"'plugin_config.tp_size'.*3 .*sp_size=1.*4 rank"):
        sequence_size(hybrid, 4, 4, "run.py")
    with pytest.raises(ConfigError, match=r" 3 .*sp_size=2.*8 rank"):
        sequence_size(replace(hybrid, sp_size=2), 8, 4, "run.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sp_size": 2}, "'sp_size'.*2 .*sp_size=1"),
        ({"plugin": "zero1-seq"}, "'sp_size'.* 4 "),
        (
            {"plugin": "hybrid", "plugin_config": {"tp_size": 2}},
            "'plugin_config.tp_size'.*2 .*plugin_config.tp_size=1",
        ),
    ],
)
def test_an_autoencoder_has_nothing_to_share(run: TrainRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sequence_size(replace(run, task="autoencoder", **changes), 4, 4, "run.py")
