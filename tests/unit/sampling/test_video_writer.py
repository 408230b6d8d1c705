import json
import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from opensora.evaluation.psnr import psnr
from opensora.rng import generator
from opensora.sampling.metadata import is_done, output_path
from opensora.sampling.video_writer import WriteError, prepare_folder, rgb_frames, write_sample, write_video
from opensora.types import VideoConditioning
from tests.support.fake_sampler import SETTINGS, request


def smooth_video(frames: int, height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 3, 4, 4, generator=generator(0, "video")) * 2 - 1
    return F.interpolate(coarse, size=(frames, height, width), mode="trilinear")[0]


def read(path: Path) -> tuple[Tensor, Fraction, str, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        context = stream.codec_context
        rate, codec, pixels = stream.average_rate, context.name, context.pix_fmt
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1, rate, codec, pixels


@pytest.mark.parametrize(
    ("fps", "rate"), [(8.0, Fraction(8)), (7.5, Fraction(15, 2)), (24000 / 1001, Fraction(24000, 1001))]
)
def test_mp4_round_trip(tmp_path: Path, fps: float, rate: Fraction) -> None:
    video = smooth_video(9, 32, 48)
    entry = write_video(video, tmp_path / "v.mp4", fps)
    back, real_rate, codec, pixels = read(tmp_path / "v.mp4")
    assert (real_rate, codec, pixels) == (rate, "h264", "yuv420p")
    assert back.shape == video.shape
    assert psnr(back[None], video[None]).item() > 33
    assert entry == {
        "file": "v.mp4",
        "bytes": (tmp_path / "v.mp4").stat().st_size,
        "stored_height": 32,
        "stored_width": 48,
    }


def test_odd_sides_get_their_last_row_and_column_twice(tmp_path: Path) -> None:
    video = smooth_video(5, 31, 47)
    entry = write_video(video, tmp_path / "v.mp4", 8)
    assert (entry["stored_height"], entry["stored_width"]) == (32, 48)
    back = read(tmp_path / "v.mp4")[0]
    assert back.shape == (3, 5, 32, 48)
    assert psnr(back[None, :, :, :31, :47], video[None]).item() > 33
    assert psnr(back[None, :, :, 31:, :47], video[None, :, :, 30:]).item() > 28


@pytest.mark.parametrize("colour", [(1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, 1.0)])
def test_colors_survive(tmp_path: Path, colour: tuple[float, ...]) -> None:
    write_video(torch.tensor(colour).view(3, 1, 1, 1).expand(3, 3, 16, 16), tmp_path / "v.mp4", 8)
    assert (read(tmp_path / "v.mp4")[0].mean((1, 2, 3)) - torch.tensor(colour)).abs().max() < 0.03


def test_the_same_video_is_the_same_file(tmp_path: Path) -> None:
    """Many times over: with x264's macroblock tree about one file in 50 differs."""
    video, files = smooth_video(9, 32, 48), set()
    for _ in range(100):
        write_video(video, tmp_path / "v.mp4", 8)
        files.add((tmp_path / "v.mp4").read_bytes())
    assert len(files) == 1


def test_one_frame_is_a_png_of_the_exact_bytes(tmp_path: Path) -> None:
    video = smooth_video(1, 15, 17)
    path = write_sample(video, request(num_frames=1, height=15, width=17), SETTINGS, tmp_path)
    assert path.suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(path)), rgb_frames(video)[0])


def test_bytes_are_rounded_and_clipped() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 7.0]).view(1, 1, 1, 6).expand(3, 1, 1, 6)
    assert rgb_frames(values)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_record_has_all_settings(tmp_path: Path) -> None:
    path = write_sample(smooth_video(4, 16, 16), request('say "ü"', negative_prompt="dark", seed=5), SETTINGS, tmp_path)
    known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    wanted = dict(prompt='say "ü"', negative_prompt="dark", seed=5, num_frames=4, height=16, width=16, fps=8.0)
    wanted |= dict(guidance_scale=3.0, steps=3, config_hash="c0", weights="w0", file=path.name, stored_width=16)
    assert wanted.items() <= known.items()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, path.with_suffix(".json").name])


def test_record_of_references_with_other_bytes(tmp_path: Path) -> None:
    """They come back from the json as Python has them."""
    reference = os.fsdecode(b"caf\xe9.png")
    one = request(num_frames=1, conditioning=VideoConditioning((reference,), "c0", "0"))
    path = write_sample(smooth_video(1, 16, 16), one, SETTINGS, tmp_path)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["references"] == [reference]
    assert is_done(path, one, SETTINGS)


def test_errors_of_the_encoder_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"v\.mp4: cannot be (encoded|written) "):
        write_video(torch.zeros(3, 1, 2, 20000), tmp_path / "v.mp4", 8)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_video_and_no_half_one(tmp_path: Path) -> None:
    """A file size limit is how a process meets a write that the system refuses half way."""
    video = torch.rand(3, 8, 64, 64, generator=generator(0, "noise")) * 2 - 1
    one = request(num_frames=8, height=64, width=64)
    kept = write_sample(smooth_video(8, 64, 64), request("kept", num_frames=8, height=64, width=64), SETTINGS, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"a-red-circle.*File too large.*save_dir"):
            write_sample(video, one, SETTINGS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert is_done(kept, request("kept", num_frames=8, height=64, width=64), SETTINGS)
    write_sample(video, one, SETTINGS, tmp_path)
    assert is_done(output_path(tmp_path, one), one, SETTINGS)


def test_a_stop_between_video_and_record_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redoing with other weights: at no moment may the old record stand next to the new video."""
    one, video = request(), smooth_video(4, 16, 16)
    path = write_sample(video, one, SETTINGS, tmp_path)
    present = []

    def stop(part: Path, text: str) -> None:
        present.append((path.exists(), path.with_suffix(".json").exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr("opensora.files.write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample(video, one, SETTINGS, tmp_path)
    assert present == [(True, False)]
    assert not is_done(path, one, SETTINGS)


def test_impossible_folder_is_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"file/out: .*Not a directory"):
        prepare_folder(tmp_path / "file" / "out")
    assert list(prepare_folder(tmp_path / "new" / "deep").iterdir()) == []
