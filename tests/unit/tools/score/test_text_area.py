"""Text, watermarks and bars in real footage and in drawn ones."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from tests.support.media_files import write_video
from tools.clip_frames import sample_frames
from tools.datasets.probe import demo_videos
from tools.score.text_area import TextArea, TextDetector, _is_text, measure, steady_boxes

pytest.importorskip("rapidocr", reason="rapidocr is not installed; run pip install --no-deps -r requirements/onnx.txt")

BIKES, BUNNY, CARPHONE = demo_videos()
CLEAN = [
    {"path": BIKES, "start_frame": 76, "end_frame": 137},
    {"path": BIKES, "start_frame": 187, "end_frame": 242},
    {"path": BUNNY},
    {"path": CARPHONE},
    {"path": CARPHONE.replace("pristine", "distorted")},
]


@cache
def detector(side: int = 256) -> TextDetector:
    return TextDetector(side, score=0.7, threads=1)


def resized(frames: list[Frames], height: int) -> list[Frames]:
    import cv2

    width = round(frames[0].shape[1] * height / frames[0].shape[0] / 2) * 2
    return [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]  # type: ignore[misc]


def written(frame: Frames, text: str, place: tuple[float, float], size: float) -> Frames:
    """The frame with a line of text. place, size: in shares of width and height."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    height, width = frame.shape[:2]
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", round(size * height))
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).text((place[0] * width, place[1] * height), text, fill="white", font=font)
    return np.asarray(image)


@pytest.mark.parametrize("row", CLEAN, ids=lambda row: f"{Path(row['path']).stem}-{row.get('start_frame', 0)}")
def test_real_footage_has_text_only_where_it_is_written(row: dict[str, object]) -> None:
    frames = list(sample_frames(row, 2))
    clean = measure(frames, [detector()(frame) for frame in frames])
    assert (clean["ocr"], clean["text_area"], clean["watermark"], clean["border"]) == (0, 0, 0, 0)
    assert clean["letterbox"] < 0.01  # a file of carphone has one black column
    titled = [written(frame, "A man rides a bike", (0.25, 0.85), 1 / 12) for frame in frames]
    scores = measure(titled, [detector()(frame) for frame in titled])
    assert scores["ocr"] == 1
    assert 0.02 < scores["text_area"] < 0.08


def test_a_name_that_stays_is_a_watermark(tmp_path: Path) -> None:
    frames = resized(list(sample_frames(CLEAN[0], 8)), 136)
    named = [written(frame, "CHANNEL 5", (0.6, 0.05), 1 / 8) for frame in frames]
    tool = TextArea(frames=4, side=160)
    rows = [
        {"path": write_video(tmp_path / "named.mp4", named, codec_options={"crf": "12"}), "text": "kept"},
        {"path": str(tmp_path / "none.mp4")},
        {"path": write_video(tmp_path / "clean.mp4", frames, codec_options={"crf": "12"})},
    ]
    marked, missing, clean = tool(rows)
    assert isinstance(missing, BadClip)
    assert isinstance(marked, dict)
    assert isinstance(clean, dict)
    assert marked["text"] == "kept"
    assert marked["ocr"] == 1
    assert 0.5 * marked["text_area"] < marked["watermark"] < 2 * marked["text_area"]
    assert (clean["ocr"], clean["text_area"], clean["watermark"]) == (0, 0, 0)


def test_a_box_of_most_of_the_frame_is_no_text() -> None:
    """As of a shot before the sky, in one of 360x640 pixels; a title may fill half of the frame."""
    corners = [[0, 0, 639, 359], [40, 18, 592, 359], [92, 29, 639, 359], [155, 48, 497, 229], [20, 90, 620, 270]]
    boxes = np.array([[[a, b], [c, b], [c, d], [a, d]] for a, b, c, d in corners], np.float32)
    assert _is_text(boxes, np.full(5, 0.9, np.float32), 360 * 640).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(("rows", "columns"), [(20, 0), (0, 30), (10, 16)])
def test_a_letterbox_is_measured_after_coding(rows: int, columns: int, tmp_path: Path) -> None:
    frames = resized(list(sample_frames(CLEAN[1], 4)), 136)
    pad = [(rows, rows), (columns, columns), (0, 0)]
    boxed = [np.pad(frame, pad) for frame in frames]
    path = write_video(tmp_path / "a.mp4", boxed, codec_options={"crf": "28"})
    scores = measure(list(sample_frames({"path": path}, 4)), [np.zeros((0, 4, 2), np.float32)])
    height, width = boxed[0].shape[:2]

    def share(off: int) -> float:
        inside = (height - 2 * (rows + off * bool(rows))) * (width - 2 * (columns + off * bool(columns)))
        return 1 - inside / (height * width)

    assert share(-1) <= scores["letterbox"] <= share(1)
    assert scores["border"] == 0
    white = [np.pad(frame, pad, constant_values=255) for frame in frames]
    scores = measure(white, [np.zeros((0, 4, 2), np.float32)])
    assert scores["border"] == pytest.approx(share(0), abs=1e-4)
    assert scores["letterbox"] == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (1, 600), (600, 1)])
def test_odd_sizes_are_scored(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for frame in (noise, np.zeros_like(noise)):
        scores = measure([frame], [detector(64)(frame)])
        assert (scores["ocr"], scores["watermark"]) == (0, 0)


def test_text_area_is_the_mean_of_the_union_and_ocr_the_most_boxes() -> None:
    frames = [np.zeros((100, 200, 3), np.uint8)] * 2
    box = np.array([[0, 0], [49, 0], [49, 19], [0, 19]], np.float32)
    scores = measure(frames, [np.stack([box, box]), np.zeros((0, 4, 2), np.float32)])
    assert scores == {"ocr": 2, "text_area": 0.025, "watermark": 0.0, "letterbox": 0.0, "border": 0.0}


def test_steady_boxes_are_in_every_frame() -> None:
    box, near, far = (0, 0, 40, 10), (2, 1, 42, 11), (100, 0, 140, 10)
    assert steady_boxes([[box, far], [near], [box, far]]) == [box]
    assert steady_boxes([[box], []]) == []


def test_wrong_flags_are_refused() -> None:
    for flags in ({"frames": 0}, {"side": 8}, {"score": 1.0}, {"threads": 0}):
        with pytest.raises(ConfigError, match=r"^text_area: --frames .*; allowed: 1 to 256 frames"):
            TextArea(**flags)  # type: ignore[arg-type]
