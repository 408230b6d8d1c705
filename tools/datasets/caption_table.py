"""Give clips the captions of a table: one row per clip in, the same with its text out.

Run: python -m tools.datasets.caption_table clips.csv train.csv --captions captions.csv

The captions are keyed by columns video (file name) and shot (number in that video), as tools.scene_cut writes them.
"""

import functools

from opensora.datasets.table import read_table, require_columns
from opensora.errors import BadClip, DataError
from tools.runner import Row, run

Key = tuple[str, str]


def caption(row: Row, *, captions: str) -> Row:
    """The row with column text.

    captions: table with columns video, shot, text
    """
    key = (str(row.get("video", "")), str(row.get("shot", "")))
    text = caption_table(captions).get(key)
    if text is None:
        raise BadClip(f"video {key[0]!r}, shot {key[1]!r}: no caption in {captions}; add a line for it")
    return {
        "path": row["path"],
        "text": text,
        **{name: cell for name, cell in row.items() if name not in ("path", "text")},
    }


@functools.cache
def caption_table(path: str) -> dict[Key, str]:
    """(video, shot) -> text; DataError names the line of an empty or repeated entry."""
    table = read_table(path)
    require_columns(table.path, table.columns, ("video", "shot", "text"))
    texts: dict[Key, str] = {}
    for index, cells in enumerate(table.rows):
        key, text = (str(cells["video"]), str(cells["shot"])), str(cells.get("text") or "").strip()
        if not text or key in texts:
            problem = "repeats an earlier line" if text else "the caption is empty"
            raise DataError(
                f"{table.location(index)}: {problem}; every (video, shot) needs one caption; correct the line"
            )
        texts[key] = text
    return texts


if __name__ == "__main__":
    run(caption)
