"""The synthetic manifest of `opensora bench buckets` and its counts."""

from pathlib import Path

import pytest
from rich.console import Console

from bench import buckets
from opensora.cli import bench
from opensora.config import load
from opensora.datasets.manifest import read_manifest
from opensora.errors import OpenSoraError
from opensora.platforms import select
from opensora.schema import TrainRun
from tests.support.command import ROOT


@pytest.mark.usefixtures("warm_children")
def test_every_row_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "buckets" in bench.BENCHES
    monkeypatch.setattr(buckets, "QUICK_ROWS", 20_000)
    monkeypatch.setattr(buckets, "_BLOCK", 7_000)
    results = buckets.run(select("cpu"), quick=True)
    assert results["rows"] == 20_000
    assert results["kept"] + sum(results["dropped"].values()) == 20_000
    assert results["kept"] == sum(8 * row["batch"] * row["steps"] for row in results["buckets"]) > 5_000
    assert results["steps"] == sum(row["steps"] for row in results["buckets"])
    assert results["peak_bytes"] > 50 * 2**20
    console = Console(width=200)
    with console.capture() as capture:
        for table in buckets.tables(results):
            console.print(table)
    assert f"{results['kept']:,}" in capture.get()


def test_bucket_config_is_that_of_the_recipe() -> None:
    assert load(str(ROOT / "configs/stdit3/train/buckets.py"), [], TrainRun).run.bucket_config == buckets.CONFIG


def test_manifest_has_images_and_videos(tmp_path: Path) -> None:
    path = str(tmp_path / "m.parquet")
    buckets.write_manifest(path, 5_000)
    rows = read_manifest(path).rows
    assert 0.25 < sum(row.num_frames == 1 for row in rows) / len(rows) < 0.35
    assert len({row.path for row in rows}) == len(rows) > 4_900


@pytest.mark.usefixtures("warm_children")
def test_failing_process_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "write_manifest", lambda path, rows: Path(path).write_text("path,text\n"))
    with pytest.raises(OpenSoraError, match=r"manifest.parquet: not a Parquet file"):
        buckets.run(select("cpu"), quick=True)
