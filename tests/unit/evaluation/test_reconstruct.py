"""Reconstructions of a manifest's clips: figures and picture."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from opensora.datasets.video import VideoTextDataset
from opensora.evaluation.psnr import psnr
from opensora.evaluation.reconstruct import Reconstructed, load_autoencoder, main, reconstruct, table
from tests.support.command import ROOT
from tests.support.media_files import write_video

VAE = str(ROOT / "assets/vae-small")


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    for name, frames in (("a", 12), ("b", 9), ("c", 16)):
        write_video(tmp_path / f"{name}.mp4", frames=frames, size=(16, 32))
    path = tmp_path / "shots.csv"
    path.write_text("path\na.mp4\nb.mp4\nc.mp4\n")
    return str(path)


def test_figures_are_those_of_the_autoencoder(manifest: str) -> None:
    dataset = VideoTextDataset(manifest, num_frames=5, image_size=(16, 32), start="center", captions=False)
    vae = load_autoencoder(VAE)
    rows = list(reconstruct(vae, dataset, clips=2))
    assert [row.where for row in rows] == [f"{manifest}:2", f"{manifest}:4"]  # the first and the last of three
    clip = rows[1].original
    with torch.no_grad():
        expected, _ = vae(clip[None], None)
    torch.testing.assert_close(rows[1].reconstruction, expected[0].clamp(-1, 1))
    assert rows[1].psnr == pytest.approx(psnr(expected.clamp(-1, 1), clip[None]).item())


def test_the_table_has_means_and_the_median_of_flow() -> None:
    still = torch.zeros(3, 3, 16, 16)
    rows = [Reconstructed(f"m:{i}", still, still + error) for i, error in enumerate((0.2, 0.02))]
    lines = table(rows)
    assert lines[1].split() == ["m:0", "20.00", f"{rows[0].ssim:.3f}", "-"]  # a difference of 0.2 of a range of 2
    assert lines[2].split()[1] == "40.00"
    assert lines[3].split()[-3:] == ["30.00", f"{(rows[0].ssim + rows[1].ssim) / 2:.3f}", "-"]


def test_the_command_prints_and_draws(manifest: str, tmp_path: Path, capsys) -> None:
    sheet = tmp_path / "pictures/sheet.png"
    assert main([VAE, manifest, "--num-frames", "5", "--image-size", "16", "32", "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "clip" in out.splitlines()[0]
    assert len(out.splitlines()) == 1 + 3 + 1 + 1
    with Image.open(sheet) as picture:
        assert picture.height == 3 * 64 + 2 * 3


def test_mistakes_are_sentences(manifest: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path), manifest]) == 2
    assert "names no 'type' of an autoencoder" in capsys.readouterr().err
    for option, value in (("--clips", "0"), ("--num-frames", "8")):
        assert main([VAE, manifest, option, value]) == 2
        assert f"{option}: found {value}; allowed: " in capsys.readouterr().err
    assert main([VAE, str(tmp_path / "none.csv")]) != 0
    assert "none.csv" in capsys.readouterr().err
