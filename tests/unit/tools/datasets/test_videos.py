from pathlib import Path

from opensora.datasets.table import read_table
from tests.support.media_files import write_picture, write_video
from tools.datasets.videos import SUFFIXES, describe
from tools.runner import main


def test_a_folder_of_videos_and_pictures(tmp_path: Path) -> None:
    folder, table = tmp_path / "films", tmp_path / "videos.csv"
    folder.mkdir()
    write_video(folder / "a.mp4", 4, pixel_ratio=2)
    write_picture(folder / "b.JPG")
    assert main(describe, [str(folder), str(table)], suffixes=SUFFIXES) == 0
    lines = table.read_text().splitlines()
    assert lines[0] == "path,num_frames,fps,height,width"
    assert [line.split("/")[-1] for line in lines[1:]] == ["a.mp4,4,8.0,32,128", "b.JPG,1,25.0,32,64"]
    assert len(read_table(str(table)).columns) == 5
