"""Video files that are whole but unusual."""

from opensora.datasets.decode import Video
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.media_files import frame_number, write_video


def late_start(bench: Workbench) -> list[int]:
    """Numbers of all frames of a film whose first frame is shown after four units."""
    path = write_video(bench.folder / "late.mp4", 8, times=range(4, 12))
    with Video(path) as video:
        return [frame_number(frame) for frame in video.frames(range(video.info.num_frames))]


CASES = [OddInput("mp4 that starts late: its frames", list(range(8)), late_start)]
