"""Every format keeps the frames, their rate and the settings."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from opensora.datasets.decode import Video
from opensora.errors import ConfigError, DataError
from opensora.evaluation.psnr import psnr
from opensora.sampling.grid import read_frames_of
from opensora.sampling.metadata import is_done, output_path
from opensora.sampling.video_formats import FORMATS, VideoFormat, check_encoder, read_settings
from opensora.sampling.video_writer import rgb_frames, write_sample, write_video
from tests.support.fake_sampler import SETTINGS, request
from tests.unit.sampling.test_video_writer import smooth_video

CODECS = {"mp4": "h264", "hevc": "hevc", "webm": "vp9", "av1": "libdav1d"}
PROMPT = 'say "ü", 日本\n\0'


@pytest.mark.parametrize("save_format", list(FORMATS))
def test_a_video_in_every_format(tmp_path: Path, save_format: str) -> None:
    import torch

    video = smooth_video(6, 30, 46)
    one = request(PROMPT, num_frames=6, height=30, width=46, fps=12.5, save_format=save_format)
    path = write_sample(video, one, SETTINGS, tmp_path, ["opensora", "sample", "s.py"])
    assert path.suffix == FORMATS[save_format].ending
    assert is_done(path, one, SETTINGS)
    frames = torch.from_numpy(read_frames_of(path)).permute(3, 0, 1, 2).float() / 127.5 - 1
    assert frames.shape == video.shape
    assert psnr(frames[None], video[None]).item() > {"gif": 26, "av1": 28}.get(save_format, 31)
    if save_format in CODECS:
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == CODECS[save_format]
    if save_format != "png":
        with Video(str(path)) as read:
            assert float(read.info.rate) == 12.5
    else:
        assert np.array_equal(read_frames_of(path), rgb_frames(video))

    path.with_suffix(".json").rename(tmp_path / "elsewhere.json")  # the settings are in the file itself
    settings = read_settings(path)
    assert (settings["prompt"], settings["seed"], settings["weights"]) == (PROMPT, 1, "w0")
    assert settings["command"][:3] == ["opensora", "sample", "s.py"]
    assert f"save_format={save_format}" in settings["command"] or save_format == "mp4"


@pytest.mark.parametrize("save_format", ["hevc", "webm", "av1", "gif"])
def test_the_same_video_is_the_same_file(tmp_path: Path, save_format: str) -> None:
    video, contents = smooth_video(5, 16, 16), set()
    for _ in range(3):
        write_video(video, tmp_path / "v", 8, save_format, {"prompt": "a"})
        contents.add((tmp_path / "v").read_bytes())
    assert len(contents) == 1


def test_pictures_of_an_older_video_go(tmp_path: Path) -> None:
    one = request(num_frames=4, save_format="png")
    (output_path(tmp_path, one)).mkdir()
    (output_path(tmp_path, one) / "old.png").write_text("x")
    path = write_sample(smooth_video(4, 16, 16), one, SETTINGS, tmp_path)
    assert sorted(each.name for each in path.iterdir()) == [f"0000{number}.png" for number in range(4)]
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]
    (path / "00003.png").unlink()
    assert not is_done(path, one, SETTINGS)


def test_a_gif_lasts_as_long_as_the_video(tmp_path: Path) -> None:
    """24 frames per second are 41.7 ms, and GIF counts in steps of 10."""
    write_video(smooth_video(24, 32, 32), tmp_path / "v.gif", 24, "gif")
    with Image.open(tmp_path / "v.gif") as image:
        lengths = []
        for number in range(image.n_frames):
            image.seek(number)
            lengths.append(image.info["duration"])
    assert sum(lengths) == 1000
    assert {40, 50} <= set(lengths)  # equal frames are one, which lasts longer


def test_an_encoder_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for save_format in FORMATS:
        check_encoder(save_format)
    monkeypatch.setitem(FORMATS, "av1", VideoFormat(".webm", "librav1e-of-a-system"))
    with pytest.raises(
        ConfigError, match="'save_format': 'av1' needs the encoder librav1e-of-a-system, which the FFmpeg"
    ):
        check_encoder("av1")


def test_files_without_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: no such file"):
        read_settings(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="holds no png"):
        read_settings(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.mp4: cannot be read"):
        read_settings(tmp_path / "a.mp4")
    write_video(smooth_video(2, 16, 16), tmp_path / "a.mp4", 8)
    with pytest.raises(DataError, match=r"a\.mp4: holds no settings .* a\.json is not next to it"):
        read_settings(tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "from the record"}))
    assert read_settings(tmp_path / "a.mp4") == {"prompt": "from the record"}
