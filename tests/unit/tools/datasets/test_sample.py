"""Rows samples at random."""

from pathlib import Path

import pytest

from tests.unit.tools.datasets.test_filter import manifest, numbers
from tools.datasets.sample import main

pytest.importorskip("duckdb")


def test_sample(tmp_path: Path) -> None:
    """As many rows as wanted, in their order, the same ones for one seed, spread over the table."""
    source, out = manifest(tmp_path, [{}] * 1000), tmp_path / "out.parquet"
    samples = []
    for words in (["--rows", "100"], ["--share", "0.1"], ["--rows", "100", "--seed", "-1"]):
        assert main([source, str(out), *words]) == 0
        samples.append(numbers(out))
    assert len(set(samples[0])) == len(set(samples[2])) == 100
    assert samples[0] == samples[1] == sorted(samples[0])
    assert samples[0] != samples[2]
    assert 350 < sum(samples[0]) / 100 < 650
    assert main([source, str(out), "--rows", "5000"]) == 0
    assert numbers(out) == list(range(1000))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "allowed: --rows or --share"),
        (["--rows", "1", "--share", "0.5"], 2, "allowed: --rows or --share"),
        (["--rows", "0"], 2, "allowed: 1 row or more"),
        (["--share", "1.5"], 2, "a share above 0 and up to 1"),
        (["--share", "0.01"], 1, "no row is drawn of 4"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str) -> None:
    assert main([manifest(tmp_path, [{}] * 4), str(tmp_path / "out.csv"), *words]) == code
    assert says in capsys.readouterr().err
