"""Previews: the clip itself where browsers play it, otherwise an H.264 copy of the shot."""

from pathlib import Path

import av
import numpy as np
import pytest

from opensora.datasets.decode import Video
from opensora.errors import BadClip
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.browse.clip_preview import ClipPreview


def reds(path: str) -> list[float]:
    with Video(path) as video:
        return [float(frame[..., 0].mean()) for frame in video.frames(range(video.info.num_frames))]


def test_a_clip_that_browsers_play_is_itself(tmp_path: Path) -> None:
    path = color_video(tmp_path / "film.mp4", 10, 8)
    preview = ClipPreview(str(tmp_path / "copies"))
    assert preview.playable({"path": path}) == path
    assert preview.note({"path": path}) == ""


def test_a_shot_is_a_copy_of_its_frames(tmp_path: Path) -> None:
    """Of ten red frames and eight blue ones, those from the eighth to the twelfth."""
    path = color_video(tmp_path / "film.mp4", 10, 8)
    preview = ClipPreview(str(tmp_path))
    row = {"path": path, "start_frame": "7", "end_frame": "12.0"}
    copy = preview.playable(row)
    assert copy == preview.playable(dict(row)) != path
    assert [red > 128 for red in reds(copy)] == [True, True, True, False, False]
    assert preview.note(row).startswith("Shown: a copy")
    assert preview.frame(row, 32).shape == (16, 32, 3)


def test_other_codecs_are_copied_in_h264(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 66, 34, "yuv420p"
        for value in (30, 200, 90):
            picture = np.full((34, 66, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    copy = ClipPreview(str(tmp_path)).playable({"path": str(path)})
    with Video(copy) as video:
        assert (video.details().codec, video.details().pix_fmt) == ("h264", "yuv420p")
        assert (video.info.width, video.info.height, video.info.num_frames, video.info.fps) == (66, 34, 3, 8)
    assert np.allclose(reds(copy), (30, 200, 90), atol=4)


def test_the_oldest_copies_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.browse.clip_preview._MOST_PREVIEWS", 2)
    path = color_video(tmp_path / "film.mp4", 10, 8)
    (tmp_path / "copies").mkdir()
    preview = ClipPreview(str(tmp_path / "copies"))
    made = [preview.playable({"path": path, "start_frame": n, "end_frame": n + 1}) for n in range(4)]
    assert sorted(str(each) for each in (tmp_path / "copies").iterdir()) == sorted(made[2:])


def test_damage_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    preview, row = ClipPreview(str(tmp_path)), {"path": str(tmp_path / "text.mp4")}
    for read in (lambda: preview.playable(row), lambda: preview.frame(row, 64), lambda: preview.note(row)):
        with pytest.raises(BadClip, match=r"text\.mp4"):
            read()
    assert [each.name for each in tmp_path.iterdir()] == ["text.mp4"]
