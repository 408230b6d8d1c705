"""The measurement of the tools on whole tables."""

from pathlib import Path

import pyarrow.parquet

from bench.tables import write_clips, write_scores


def test_written_tables(tmp_path: Path) -> None:
    """Each clip has one path; 19 of 20 have a score."""
    write_clips(str(tmp_path / "clips.parquet"), 1000)
    write_scores(str(tmp_path / "scores.parquet"), 1000)
    clips, scores = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("clips", "scores"))
    paths = clips["path"].to_pylist()
    assert paths[:2] == ["clips/clip-0.mp4", "clips/clip-1.mp4"]
    assert clips["source_path"].to_pylist()[39:41] == ["films/film-0.mp4", "films/film-1.mp4"]
    assert scores["path"].to_pylist() == paths[:49:-1]
