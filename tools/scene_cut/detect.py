"""Find scene boundaries: one video in, one row per scene out.

Run: python -m tools.scene_cut.detect videos.csv scenes.csv --threshold 27
"""

from collections.abc import Iterable, Iterator

from opensora.datasets.decode import Frames, Video
from opensora.errors import ConfigError
from tools.runner import Row, Rows, run

_WIDTH = 256  # pixels; the detector compares mean colors, which small images keep


def detect(row: Row, *, threshold: float = 27.0, min_seconds: float = 0.3) -> Rows:
    """Yield the scenes of `row["path"]`: times in seconds from the first frame, and frame numbers, end exclusive.

    threshold: mean HSV difference (0-255) between neighboring frames that counts as a cut
    min_seconds: scenes shorter than this join the one before
    """
    if threshold <= 0 or min_seconds < 0:
        raise ConfigError(f"detect: --threshold {threshold} --min-seconds {min_seconds}; both must be positive")
    with Video(row["path"]) as video:
        info = video.info
        cuts = list(cut_frames(video.frames(range(info.num_frames)), threshold))
    for shot, (start, end) in enumerate(scenes(cuts, info.num_frames, round(min_seconds * info.fps))):
        yield {
            **row,
            "shot": shot,
            "start": round(start / info.fps, 4),
            "end": round(end / info.fps, 4),
            "start_frame": start,
            "end_frame": end,
            "num_frames": info.num_frames,
            "fps": round(info.fps, 4),
            "height": info.height,
            "width": info.width,
        }


def cut_frames(frames: Iterable[Frames], threshold: float) -> Iterator[int]:
    """Numbers of the frames that begin a scene, by PySceneDetect's content detector."""
    import cv2
    from scenedetect import ContentDetector, FrameTimecode

    detector = ContentDetector(threshold=threshold, min_scene_len=0)  # `scenes` joins short ones
    for number, frame in enumerate(frames):
        if frame.shape[1] > _WIDTH:
            height = max(1, round(frame.shape[0] * _WIDTH / frame.shape[1]))
            frame = cv2.resize(frame, (_WIDTH, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        image = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        for cut in detector.process_frame(FrameTimecode(number, fps=25.0), image):  # only the number is used
            yield cut.frame_num


def scenes(cuts: Iterable[int], num_frames: int, min_frames: int) -> list[tuple[int, int]]:
    """(start, end) frames between the cuts; a scene under `min_frames` joins the one before, the first the next."""
    bounds = [0]
    for cut in cuts:
        if cut - bounds[-1] >= min_frames:
            bounds.append(cut)
        elif len(bounds) > 1:
            bounds[-1] = cut
    if len(bounds) > 1 and num_frames - bounds[-1] < min_frames:
        bounds.pop()
    return list(zip(bounds, [*bounds[1:], num_frames]))


if __name__ == "__main__":
    run(detect)
