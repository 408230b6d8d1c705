"""`opensora bench encoder`: the two layouts, their ratios, and a layout that does not fit into memory; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch

from bench import encoder, memory
from bench.encoder import LAYOUTS, NAMES, Sizes
from opensora.cli import bench
from opensora.errors import OpenSoraError

TINY = Sizes((5, 9), pixels=16, width=8, groups=4)


def test_layouts_are_those_of_the_releases() -> None:
    """1.1: 97,349,258 parameters in the encoder. 1.0: no 2-D convolution and nothing learned in the sampling of time."""
    with torch.device("meta"):
        halves = {name: encoder.build(name, 128, 32).encoder for name in LAYOUTS}
    assert {name: sum(p.numel() for p in half.parameters()) for name, half in halves.items()} == {
        "1.0": 93_816_456,
        "1.1": 97_349_258,
    }
    names = {name: [key for key, _ in half.named_parameters()] for name, half in halves.items()}
    assert [sum("mix_factor" in key for key in names[name]) for name in NAMES] == [0, 2]
    two_d = {name: sum(isinstance(each, torch.nn.Conv2d) for each in half.modules()) for name, half in halves.items()}
    assert two_d["1.0"] == 0
    assert two_d["1.1"] > 10


def test_flop_grow_with_latent_frames_and_are_fewer_in_1_1() -> None:
    counts = {(name, frames): encoder.flops(name, frames, TINY) for name in NAMES for frames in (1, 5, 9)}
    for name in NAMES:
        steps = [counts[name, 5] - counts[name, 1], counts[name, 9] - counts[name, 5]]
        assert steps[0] == steps[1] > 0
    # A 3-D kernel of 3x3x3 takes three times what one of 3x3 takes; 1.0 has them in all levels, pooled early.
    assert 1.2 < counts["1.0", 9] / counts["1.1", 9] < 3


def test_both_layouts_are_measured_and_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory case runs here in place of a process of its own; 1.0 does not fit at 9 frames."""

    def measured(name: str, **case: int) -> int:
        memory.CASES[name](**case)()
        if (NAMES[case["layout"]], case["frames"]) == ("1.0", 9):
            raise OpenSoraError("bench: the process was ended by signal 9, as the system does when memory runs out")
        return {"1.0": 8, "1.1": 6}[NAMES[case["layout"]]] * 2**20 * case["frames"]

    monkeypatch.setattr(encoder, "measured", measured)
    monkeypatch.setattr(encoder, "QUICK", TINY)
    file = tmp_path / "numbers.json"
    assert bench.main(["encoder", "--quick", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    rows = {(row["layout"], row["frames"]): row for row in results["rows"]}
    assert list(rows) == [("1.0", 5), ("1.1", 5), ("1.0", 9), ("1.1", 9)]
    assert [row["bytes_ratio"] for row in rows.values()] == [1.0, 0.75, None, None]
    assert rows["1.0", 9]["seconds"] is None
    assert rows["1.1", 5]["seconds_ratio"] == rows["1.1", 5]["seconds"] / rows["1.0", 5]["seconds"]
    expected = encoder.flops("1.1", 9, TINY) / encoder.flops("1.0", 9, TINY)
    assert rows["1.1", 9]["gflop_ratio"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "too much" in printed
    assert "width 8, one clip of 16x16 pixels at once, float32" in printed


def test_other_failures_end_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OpenSoraError("bench: something else")

    monkeypatch.setattr(encoder, "measured", fails)
    with pytest.raises(OpenSoraError, match="something else"):
        encoder.peak_bytes("1.0", 5, TINY)
