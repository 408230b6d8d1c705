"""`opensora bench models --quick`: what it prints and writes."""

import json
from pathlib import Path

import pytest

from bench import models
from opensora.cli import bench
from tests.unit.bench.test_train_step import TINY


def test_numbers_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "QUICK_TRAINING", (TINY,))
    monkeypatch.setattr(models, "QUICK_SAMPLING", ((TINY, 3),))
    file = tmp_path / "numbers.json"
    assert bench.main(["models", "--quick", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert results["machine"]["device"] in printed
    assert f"{results['training'][0]['share']:.2f}" in printed
    assert {row["kernel"] for row in results["kernels"]} == {"softmax_attention", "sdpa_attention"}
    assert bench.main(["models", "--json", str(tmp_path / "no" / "numbers.json")]) == 2
