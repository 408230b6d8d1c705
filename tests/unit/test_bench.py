"""What the bench counts; its clock is not tested, only what is made of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.bench import launch, memory, models, steps
from opensora.bench.clock import Round, Timing, measure
from opensora.bench.steps import Case
from opensora.cli import bench
from opensora.errors import OpenSoraError
from opensora.platforms import select

TINY = Case(width=32, heads=2, frames=2, rows=8, columns=8, text_tokens=5)


def test_flops_are_those_of_the_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per token: qkv and proj twice, queries and proj to the text, a perceptron of 4 D, backward twice as much."""
    monkeypatch.setattr(steps, "measure", lambda _, flops, *__: Timing([Round(flops, 0.5, 1e9)]))
    row = steps.training_step(TINY, select("cpu"), torch.float32)
    tokens, width, depth = 32, 32, 2
    products = depth * tokens * (4 + 4 + 2 + 8) * width**2 * 2 * 3
    text = 5 * (steps.TEXT_CHANNELS * width * 2 * 2 + (1 + depth * 2) * width**2 * 2 * 3)  # captions need no gradient
    attention = depth * (tokens * (16 + 2) + tokens * 5) * width * 2 * 2 * 3.5  # its backward computes the scores again
    assert row["gflop"] * 1e9 == pytest.approx(products + text + attention, rel=0.05)
    assert row["share"] == pytest.approx(row["gflop"] / 0.5)
    assert row["gflop_per_second"] == pytest.approx(row["gflop"] / 0.5)


def test_a_step_is_measured_beside_products_of_as_many_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock says how long each took; the middle round counts, the others are told."""
    products = [0]
    plain = torch.Tensor.__matmul__
    took = iter([2.0, 1.0, 1.0, 2.0, 1.0, 1.0])  # products and action by turns

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products[0] += 1
        return plain(a, b)

    def clock(action: Any, platform: Any) -> float:
        action()
        return next(took)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    monkeypatch.setattr("opensora.bench.clock.seconds_of", clock)
    runs: list[int] = []
    timing = measure(lambda: runs.append(1), 7 * 2 * 2 * 3 * 4, select("cpu"), torch.float32, (2, 3, 4), repeats=3)
    assert products[0] == 3 * 7
    assert len(runs) == 1 + 3
    assert timing.seconds == 1.0
    assert timing.matmul_flops_per_second == 7 * 48
    assert timing.shares == (0.5, 1.0, 2.0)


def test_keeping_the_text_changes_no_number_and_the_ratio_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turns(actions: list[Any], platform: Any) -> list[float]:
        for action in actions:
            assert action().shape == (2, 8, 2, 8, 8)
        return [3.0, 2.0]

    monkeypatch.setattr(steps, "alternate", in_turns)
    row = steps.sampling_step(TINY, select("cpu"), torch.float32, counted_tokens=3)
    assert row["speedup"] == 1.5
    assert row["largest_difference"] < 1e-5


def test_ratios_are_to_the_first_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {(65, 1): 100, (129, 1): 104, (257, 1): 98, (65, 0): 200, (129, 0): 400, (257, 0): 800}
    monkeypatch.setattr(memory, "measured", lambda name, frames, tiled: answers[frames, tiled])
    rows = memory.decoding_rows()
    assert [row["ratio"] for row in rows] == [1.0, 1.04, 0.98, 1.0, 2.0, 4.0]
    assert [row["expected"] for row in rows] == [1.0, 1.0, 1.0, 1.0, 129 / 65, 257 / 65]


def test_memory_is_what_the_work_adds() -> None:
    size = 64 * 2**20
    held = torch.ones(size, dtype=torch.uint8)  # before the work: not counted
    added = memory.added_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert held.numel() == size
    assert added == pytest.approx(size, rel=0.25)


def test_the_measured_process_gives_back_what_it_frees() -> None:
    """A block costs its size, whatever was freed before; glibc alone keeps freed ones and counts them as held before."""
    script = (
        "import torch; from opensora.bench.peak import Peak, return_freed_memory; print(return_freed_memory())\n"
        "for size in (30, 20, 25): torch.ones(size, 2**20, dtype=torch.uint8)\n"
        "peak = Peak()\n"
        "for size in (20, 24, 16): torch.ones(size, 2**20, dtype=torch.uint8)\n"
        "print(peak.added_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    switched, added = done.stdout.split()
    if switched == "False":
        pytest.skip("this C library has no mallopt")
    assert int(added) == pytest.approx(24 * 2**20, rel=0.1)


def test_a_failing_case_is_a_sentence() -> None:
    with pytest.raises(OpenSoraError, match=r"bench: .*nonsense.*opensora.bench.memory training nonsense=1`"):
        memory.measured("training", nonsense=1)


def test_a_rank_that_a_signal_ended_is_told_by_its_code() -> None:
    ended = (
        "Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)\n"  # by torchrun, after rank 1
    )
    told = f"{ended}Root Cause\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -11 (pid: 7)\n===="
    assert launch._why(told, 1) == "rank 1 was ended by signal 11 (Segmentation fault)"
    assert launch._why(told.replace("-11", "3"), 1) == "rank 1 ended with exit code 3"
    assert launch._why(f"[rank0]: ValueError: no such thing\n{told}", 1) == "no such thing"


def test_a_launcher_that_a_signal_ended_is_told_and_not_the_end_of_what_it_said_before() -> None:
    before = "****\nSetting OMP_NUM_THREADS environment variable\n****"
    expected = "the process was ended by signal 9 (Killed), as the system does when memory runs out"
    assert launch._why(before, -9) == expected
    assert launch._why("", 3) == "the process ended with exit code 3"
    assert launch._why(f"no such thing\n{before[:4]}\n", 1) == "no such thing"


def test_one_run_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "QUICK_TRAINING", (TINY,))
    monkeypatch.setattr(models, "QUICK_SAMPLING", ((TINY, 3),))
    file = tmp_path / "numbers.json"
    assert bench.main(["models", "--quick", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert found["machine"]["device"] in printed
    assert f"{found['training'][0]['share']:.2f}" in printed
    assert {row["kernel"] for row in found["kernels"]} == {"softmax_attention", "sdpa_attention"}
    assert bench.main(["models", "--json", str(tmp_path / "no" / "numbers.json")]) == 2
