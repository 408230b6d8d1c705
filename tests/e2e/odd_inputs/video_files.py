"""Video files that are whole but unusual."""

from opensora.datasets.decode import Video
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.media_files import frame_number, write_video


def uneven_times(bench: Workbench) -> list[int]:
    """Numbers of all frames of a film whose frames last one or three units in turn."""
    path = write_video(bench.folder / "uneven.mp4", 8, times=[0, 1, 4, 5, 8, 9, 12, 13])
    with Video(path) as video:
        return [frame_number(frame) for frame in video.frames(range(video.info.num_frames))]


CASES = [OddInput("mp4 of a varying rate: its frames", list(range(8)), uneven_times)]
