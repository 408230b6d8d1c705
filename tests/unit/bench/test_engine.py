"""The derived numbers of `opensora bench engine`, and its ranks; no time is asserted."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import engine, engine_rank
from bench.engine import Case
from tests.dist import one_rank


def test_efficiency_compares_with_one_rank_of_the_same_plugin() -> None:
    rows = engine.with_efficiency(
        [
            {"plugin": "ddp", "ranks": 1, "seconds": 8.0},
            {"plugin": "ddp", "ranks": 2, "seconds": 5.0},
            {"plugin": "zero2-seq", "ranks": 1, "seconds": 6.0},
            {"plugin": "zero2-seq (sp_size=2)", "ranks": 2, "seconds": 4.0},
        ]
    )
    assert [row["efficiency"] for row in rows] == [1.0, 0.8, 1.0, 0.75]


def test_every_plugin_is_measured_on_one_rank_and_on_two() -> None:
    assert {(case.plugin, case.ranks) for case in engine.CASES} == {
        (plugin, ranks) for plugin in ("ddp", "zero1", "zero2", "zero2-seq") for ranks in (1, 2)
    }
    assert all(case.sp_size == case.ranks for case in engine.CASES if case.plugin == "zero2-seq")


def _rank_result(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, **changes: Any) -> dict[str, Any]:
    """The result that one rank sends for `task`."""
    config = engine.run_config(Case("ddp", 1), tmp_path, quick=True) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    threads = torch.get_num_threads()
    try:
        with one_rank():
            engine_rank.main([task, str(tmp_path / "config.json")])
    finally:
        torch.set_num_threads(threads)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_overhead_is_loop_time_over_bare_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_rank, "_seconds", _FakeSeconds([6.0, 9.0, 6.0, 9.0, 3.0, 6.0, 9.0, 12.0]))
    results = _rank_result(tmp_path, capsys, "overhead")
    assert results["bare_seconds"] == 1.0  # of the fastest round after the first, three steps each
    assert results["loop_seconds"] == 2.0
    assert results["overhead"] == 1.0
    assert results["parameters"] > 100_000


class _FakeSeconds:
    """Runs the action and returns the next of `times`."""

    def __init__(self, times: list[float]):
        self.times = times

    def __call__(self, action: Any) -> float:
        action()
        return self.times.pop(0)


def test_run_on_files_counts_steps_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = engine.footage(tmp_path, files=2, frames=8, size=(16, 16))
    dataset = {"type": "VideoTextDataset", "data_path": str(manifest), "num_frames": 5, "image_size": [16, 16]}
    results = _rank_result(tmp_path, capsys, "data", dataset=dataset, steps=3, save_every=2)
    assert results["steps"] == 2  # the first waits for its loader to start
    assert 0 <= results["waited"] <= 2
    assert results["clip"] == "5x16x16"
    assert results["checkpoint_bytes"] > 4 * 4 * results["parameters"]  # masters, two moments, weights


def test_tables_show_the_numbers() -> None:
    row = {"parameters": 2e6, "peak_bytes": 3 * 2**20, "seconds": 1.5, "efficiency": 0.9}
    results = {
        "machine": {"device": "cpu", "memory_gib": 1.0, "torch": "2", "date": "today"},
        "steps": [{"plugin": "ddp", "ranks": 1, **row}, {"plugin": "ddp", "ranks": 2, **row}],
        "loop": {"loop_seconds": 1.02, "bare_seconds": 1.0, "overhead": 0.02},
        "data": {
            "clips_per_second": 7.0,
            "clip": "5x16x16",
            "files": "64x48 H.264",
            "waited": 1,
            "steps": 11,
            "step_seconds": 0.5,
            "save_pause_seconds": 0.25,
            "checkpoint_bytes": 2**21,
        },
    }
    console = Console(file=io.StringIO(), width=120)
    for each in engine.tables(results):
        console.print(each)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+2.0%" in text
    assert "1 of 11 steps waited" in text
    assert "paused 0.25 s at most for 2 MiB" in text
    assert text.count("0.90") == 1  # only rows of two ranks have an efficiency
