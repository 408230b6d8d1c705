"""The plot of few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.sample_plot import lines, main

ROWS = [
    {"scheduler": name, "steps": steps, "adherence": adherence, "psnr": psnr}
    for name, steps, adherence, psnr in (
        ("rflow", 4, 0.5, 20.0),
        ("rflow", 100, 1.0, 100.0),
        ("dpm-solver", 4, 0.25, 15.0),
        ("dpm-solver", 12, 0.75, 25.0),
        ("dpm-solver", 100, 1.0, 100.0),
    )
]


def test_lines_hold_the_rows_and_no_distance_to_itself() -> None:
    results = {"few_steps": ROWS}
    assert lines(results, "adherence") == [
        ("rflow", [4, 100], [0.5, 1.0]),
        ("dpm-solver", [4, 12, 100], [0.25, 0.75, 1.0]),
    ]
    assert lines(results, "psnr") == [("rflow", [4], [20.0]), ("dpm-solver", [4, 12], [15.0, 25.0])]


def test_two_panels_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"few_steps": ROWS}))
    assert main([str(tmp_path / "a.json"), str(tmp_path / "a.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = (np.abs(picture - [31, 119, 180]).max(-1) < 20).any(0)  # matplotlib's first line
    assert blue[: len(blue) // 2].any()
    assert blue[len(blue) // 2 :].any()
    assert main([str(tmp_path / "none.json"), str(tmp_path / "a.png")]) == 2
    assert "`opensora bench sample --json` writes it" in capsys.readouterr().err
