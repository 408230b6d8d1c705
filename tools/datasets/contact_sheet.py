"""Draw the middle frame of every shot with its number and length, and prepare the table of captions to fill in.

Run: python -m tools.datasets.contact_sheet shots.csv sheet.png --captions captions.csv

The table is one that tools.scene_cut.cut or tools.scene_cut.detect has written. More shots than fit on a page go to
sheet-2.png, sheet-3.png, ... Captions that captions.csv has already are kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import Frames, Video
from opensora.datasets.table import read_table, readable_rows, require_columns, write_table
from opensora.errors import BadClip, ConfigError, DataError, OpenSoraError
from opensora.files import atomic_write, write_errors_as
from opensora.progress_bar import ProgressBar
from tools.datasets.caption_table import shot_name

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

GAP, LINE = 8, 16  # pixels between cells, and of a line of text
INK, FAINT, BAD, PAPER = "#1a1a1a", "#6b6b6b", "#b42318", "#ffffff"
CAPTION_COLUMNS = ("video", "shot", "text")


@dataclass(frozen=True)
class Shot:
    """One cell of the sheet."""

    video: str  # file name of the film, with folders where several films have one name
    shot: str  # number in the video; "" = the table has none
    length: str  # "48 frames, 2.0 s"
    frame: Frames | None  # the middle one; None: it cannot be read
    error: str = ""


def film_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each row the shortest end of its film's path that no other film ends with, as captions name films."""
    films = [str(row.get("source_path") or row.get("video") or row["path"]) for row in rows]
    parts = {film: film.split("/") for film in films}
    names = {film: 1 for film in films}  # how many parts of the path
    while True:
        ends = {film: "/".join(parts[film][-count:]) for film, count in names.items()}
        several = [film for film in names if sum(end == ends[film] for end in ends.values()) > 1]
        longer = [film for film in several if names[film] < len(parts[film])]
        if not longer:
            return [ends[film] for film in films]
        for film in longer:
            names[film] += 1


def read_shot(row: dict[str, Any], name: str) -> Shot:
    """The middle frame of a row: of the scene from start_frame to end_frame, or of the whole file. name: of the film."""
    path, number = str(row["path"]), shot_name(row.get("shot"))
    try:
        with Video(path) as video:
            start, end = _bounds(row, video.info.num_frames)
            frame = next(video.frames([(start + end) // 2]))
            length = f"{end - start:,} frames, {(end - start) / video.info.fps:.1f} s"
    except BadClip as error:
        return Shot(name, number, "cannot be read", None, str(error))
    return Shot(name, number, length, frame)


def _bounds(row: dict[str, Any], num_frames: int) -> tuple[int, int]:
    try:
        return int(row["start_frame"]), int(row["end_frame"])
    except (KeyError, TypeError, ValueError):
        return 0, num_frames


def draw_sheet(shots: Sequence[Shot], path: str, *, columns: int, height: int) -> None:
    """Write one page as png. columns: cells side by side. height: of a frame in pixels. Raises DataError."""
    from PIL import Image, ImageDraw

    width = round(height * 16 / 9)
    step = width + GAP, height + 2 * LINE + GAP
    rows = -(-len(shots) // columns)
    page = Image.new("RGB", (GAP + columns * step[0], GAP + rows * step[1]), PAPER)
    draw, plain, bold = ImageDraw.Draw(page), _font(11), _font(11, bold=True)
    for place, shot in enumerate(shots):
        left, top = GAP + place % columns * step[0], GAP + place // columns * step[1]
        if shot.frame is None:
            draw.rectangle((left, top, left + width - 1, top + height - 1), outline=BAD)
        else:
            image = Image.fromarray(shot.frame)
            image.thumbnail((width, height))
            page.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        title = f"shot {shot.shot}" if shot.shot else shot.video
        draw.text((left, top + height + 1), _shorten(f"{title}: {shot.length}", draw, bold, width), INK, bold)
        if shot.shot:
            draw.text((left, top + height + LINE), _shorten(shot.video, draw, plain, width), FAINT, plain)
    with write_errors_as(DataError, path, "choose a writable place with free space"):
        atomic_write(path, lambda part: page.save(part, format="PNG"))


def write_captions(shots: Sequence[Shot], path: str) -> tuple[int, int]:
    """Write a line for every shot, with the text it has in `path` already; returns the lines with and without one."""
    texts: dict[tuple[str, str], str] = {}
    if os.path.exists(path):
        table = read_table(path)
        require_columns(table.path, table.columns, CAPTION_COLUMNS)
        texts = {(str(row["video"]), shot_name(row["shot"])): str(row.get("text") or "") for row in table.rows}
    for shot in shots:
        texts.setdefault((shot.video, shot.shot), "")
    rows = [{"video": video, "shot": shot, "text": text} for (video, shot), text in texts.items()]
    write_table(path, rows, CAPTION_COLUMNS)
    filled = sum(bool(text.strip()) for text in texts.values())
    return filled, len(texts) - filled


def contact_sheet(source: str, target: str, *, captions: str | None, columns: int, height: int, page: int) -> list[str]:
    """Draw the rows of a table; returns the paths of the pages. Raises DataError when no row can be read."""
    table = read_table(source)
    require_columns(table.path, table.columns, ("path",))
    rows, messages = readable_rows(table)
    if not rows:
        raise DataError(f"{source}: found no rows; at least one is needed; check the path")
    shots = []
    with ProgressBar("contact sheet", len(rows)) as bar:
        for message in messages:
            bar.print(f"skipped {message}")
        for (index, row), name in zip(rows, film_names([row for _, row in rows]), strict=True):
            shots.append(read_shot(row, name))
            if shots[-1].error:
                bar.print(f"cannot be drawn: {table.location(index)}: {shots[-1].error}")
            bar.advance()
    pages = []
    for first in range(0, len(shots), page):
        path = Path(target)
        pages.append(str(path.with_stem(f"{path.stem}-{first // page + 1}") if first else path))
        draw_sheet(shots[first : first + page], pages[-1], columns=columns, height=height)
    if captions is not None:
        filled, empty = write_captions(shots, captions)
        print(f"{captions}: {filled} captions, {empty} to fill in", file=sys.stderr)
    return pages


def _font(size: int, bold: bool = False) -> "ImageFont.FreeTypeFont":
    """DejaVu Sans as matplotlib ships it: Pillow's own font lacks most letters outside English."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _shorten(text: str, draw: "ImageDraw.ImageDraw", font: "ImageFont.FreeTypeFont", width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SHOTS", help="table of shots, .csv or .parquet")
    parser.add_argument("target", metavar="SHEET", help="the .png to write")
    parser.add_argument("--captions", metavar="CSV", help="table video,shot,text to write, with empty texts to fill in")
    parser.add_argument("--columns", type=int, default=6, help="shots side by side (default: %(default)s)")
    parser.add_argument("--height", type=int, default=108, help="pixels of a frame (default: %(default)s)")
    parser.add_argument("--page", type=int, default=120, help="shots on a page (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if not options.target.lower().endswith(".png"):
            raise ConfigError(f"contact_sheet: SHEET is {options.target}; allowed: a name that ends in .png")
        if min(options.columns, options.height, options.page) < 1:
            raise ConfigError("contact_sheet: --columns, --height and --page are whole numbers from 1; correct them")
        pages = contact_sheet(
            options.source,
            options.target,
            captions=options.captions,
            columns=options.columns,
            height=options.height,
            page=options.page,
        )
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(pages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
