import json
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.cli.evaluate import main
from opensora.datasets.moving_objects import prompts_of_unseen_pairs
from opensora.sampling.video_writer import write_video


def write_clip(path: Path, level: float, frames: int = 3) -> None:
    path.parent.mkdir(exist_ok=True)
    write_video(torch.full((3, frames, 16, 16), level), path, 8.0)


def test_quality_of_equal_and_darker_videos(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Gray 128 against gray 64 of 255: a squared error of (64 / 255)^2, so 12.0 dB."""
    for folder, level in (("a", 0.0), ("b", 0.0), ("dark", -0.5)):
        write_clip(tmp_path / folder / "clip.mp4", level)
    assert main(["quality", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out) == {"psnr": 100.0, "ssim": pytest.approx(1.0), "clips": 1}
    assert main(["quality", str(tmp_path / "a"), str(tmp_path / "dark")]) == 0
    dark = json.loads(capsys.readouterr().out)
    assert dark["psnr"] == pytest.approx(12.0, abs=0.2)
    assert dark["ssim"] == pytest.approx(2 * 128 * 64 / (128**2 + 64**2), abs=0.01)


def test_quality_needs_pairs_of_one_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_clip(tmp_path / "a" / "clip.mp4", 0.0)
    (tmp_path / "b").mkdir()
    assert main(["quality", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "clip.mp4: missing" in capsys.readouterr().err
    write_clip(tmp_path / "b" / "clip.mp4", 0.0, frames=2)
    assert main(["quality", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "(1, 3, 3, 16, 16)" in capsys.readouterr().err
    assert main(["quality", str(tmp_path), str(tmp_path / "b")]) == 1
    assert "no *.mp4" in capsys.readouterr().err


def test_frechet_of_shifted_features(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A shift by (3, 4) keeps the covariance, so the distance is 3^2 + 4^2."""
    features = np.random.default_rng(0).standard_normal((20, 2))
    np.save(tmp_path / "a.npy", features)
    np.save(tmp_path / "b.npy", features + np.array([3.0, 4.0]))
    assert main(["frechet", str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"frechet": pytest.approx(25.0, abs=1e-6), "samples": [20, 20]}
    np.save(tmp_path / "wide.npy", np.zeros((20, 3)))
    for other in ("wide.npy", "missing.npy"):
        assert main(["frechet", str(tmp_path / "a.npy"), str(tmp_path / other)]) == 1
        assert other in capsys.readouterr().err


def test_prompts_of_unseen_pairs_of_objects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["object-prompts", str(tmp_path / "new" / "prompts.txt")]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompts": 160, "file": str(tmp_path / "new" / "prompts.txt")}
    assert (tmp_path / "new" / "prompts.txt").read_text().splitlines() == prompts_of_unseen_pairs()


def test_adherence_of_no_videos_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prompts", str(tmp_path / "prompts.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == len((tmp_path / "prompts.txt").read_text().splitlines())
    assert main(["adherence", str(tmp_path)]) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["adherence", str(tmp_path), str(tmp_path)])


def test_a_config_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder, level in (("a", 0.0), ("b", -0.5)):
        write_clip(tmp_path / folder / "clip.mp4", level)
    config = tmp_path / "evaluate.py"
    config.write_text("metrics = dict(psnr=dict(type='PSNR'), ssim=dict(type='SSIM'))")
    words = [f"videos={tmp_path / 'a'}", f"references={tmp_path / 'b'}", f"report_dir={tmp_path / 'out'}"]
    assert main([str(config), *words]) == 0
    psnr, ssim, *paths = capsys.readouterr().out.splitlines()
    assert float(psnr.removeprefix("psnr ").removesuffix(" dB")) == pytest.approx(12.0, abs=0.2)
    assert ssim.startswith("ssim 0.8")
    assert paths == [str(tmp_path / "out" / "metrics.json"), str(tmp_path / "out" / "report.html")]
    folders = json.loads((tmp_path / "out" / "metrics.json").read_text())["folders"]
    assert folders[0]["per_video"][0]["psnr"] == pytest.approx(12.0, abs=0.2)


@pytest.mark.parametrize(
    ("written", "words", "sentence"),
    [
        ("metrics = dict(a=dict(type='PSNRR'))", [], "key 'metrics.a.type': found 'PSNRR'; nearest: 'PSNR'"),
        (
            "metrics = dict(a=dict(type='Motion', turns=2))",
            [],
            "key 'metrics.a.turns': unknown for Motion; nearest: 'runs'",
        ),
        ("metrics = dict(a=dict(type='PSNR'))", ["metrics.a.type=SSIM", "videos=v"], "key 'references': missing"),
        ("metrics = dict(a='PSNR')", [], "key 'metrics': found {'a': 'PSNR'}"),
    ],
)
def test_mistakes_in_a_config_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, written: str, words: list[str], sentence: str
) -> None:
    (tmp_path / "evaluate.py").write_text(written)
    assert main([str(tmp_path / "evaluate.py"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_word_that_is_neither_is_a_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main(["qualty", "a", "b"]) == 2
    assert "found 'qualty'; allowed: a config ending in .py or .json, or quality, frechet" in capsys.readouterr().err


def test_vbench_prints_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_clip(tmp_path / "a" / "clip.mp4", 0.0)
    (tmp_path / "a" / "clip.json").write_text(json.dumps({"file": "clip.mp4", "prompt": "a cat"}))
    (tmp_path / "all.txt").write_text("a cat\n")
    assert main(["vbench", str(tmp_path / "a"), str(tmp_path / "all.txt"), str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "videos": 1, "prompts": 1, "incomplete": ["a cat"], "out": str(tmp_path / "out"),
    }  # fmt: skip
    assert (tmp_path / "out" / "a cat-0.mp4").is_file()
