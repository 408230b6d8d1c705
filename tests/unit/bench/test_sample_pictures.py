"""The picture of docs/sampling.md."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import sample_pictures as bench
from opensora.cli.sample import FLAGS
from opensora.evaluation.shape_adherence import detect_attributes

RED = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1, 1).expand(3, 9, 32, 32)


def test_references_are_the_two_ends_of_a_clip_and_a_clip(tmp_path: Path) -> None:
    bench.write_references(tmp_path)
    first, last, clip = (bench._read(tmp_path / name) for name in ("A.png", "B.png", "A.mp4"))
    assert (first.shape[1], last.shape[1], clip.shape[1]) == (1, 1, 9)
    rows_first, rows_last = ((each.amax(0)[0] > 0).nonzero()[:, 0].float().mean() for each in (first, last))
    assert rows_last < rows_first - 5  # it moves up
    assert detect_attributes(clip) == bench.REFERENCES["A.mp4"][0]


def test_each_command_is_drawn_with_its_references_and_its_video() -> None:
    mode = bench.Mode("a cat", ("--first-frame", "A.png"))
    picture = np.asarray(bench.sheet([(mode, RED)], {"A.png": -RED[:, :1]}))
    reds = (picture == [255, 0, 0]).all(-1)
    cyans = (picture == [0, 255, 255]).all(-1)
    assert reds.sum() == 9 * bench.HEIGHT**2
    assert cyans.sum() == bench.HEIGHT**2
    assert cyans.any(0).argmax() < reds.any(0).argmax()


def test_all_conditions_have_a_command() -> None:
    flags = {flag for mode in bench.MODES for flag in mode.flags if flag.startswith("--")}
    assert flags == {"--first-frame", "--last-frame", "--connect", "--extend", "--backward", "--edit", "--strength",
                     "--keep", "--loop"}  # fmt: skip
    assert flags - set(FLAGS) == {"--connect", "--backward"}


def test_a_run_that_is_missing_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(tmp_path / "x.png"), "--run", str(tmp_path / "none")]) == 2
    assert "no such run; `opensora bench sample` in this folder trains it" in capsys.readouterr().err
