"""Random manifests: each row is kept with its own values, or dropped by a message that names its line."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opensora.datasets.manifest import Manifest, read_manifest
from opensora.datasets.row_report import Report, count_rows
from opensora.datasets.video import VideoTextDataset
from opensora.errors import BadClip, DataError
from opensora.rng import Draw
from tests.e2e.odd_inputs.case import Workbench
from tests.support.damage import DAMAGES, Damage
from tests.support.media_files import write_video

CLIPS = [f"clip{number}.mp4" for number in range(3)]
TINTS = [(60, 0, 0), (0, 60, 0), (0, 0, 60)]  # of the clips, added to gray
PLAIN = st.from_regex(r"[a-z]{3,8}( [a-z]{3,8}){0,4}", fullmatch=True).filter(
    lambda text: text not in ("nan", "none", "null")
)
WORDS_FOR_NOTHING = st.sampled_from(["", " ", "nan", "NaN", "None", "null", "N/A", "\u200b", "\ufeff"])
PUNCTUATION = st.text(st.sampled_from("ab,;\"' \t\n\r\\/.-=#@é猫🐈\u0301\u202e<>&0159"), max_size=20)
TEXTS = st.one_of(PLAIN, PLAIN, WORDS_FOR_NOTHING, PUNCTUATION, st.text(max_size=12))
COUNTS = st.one_of(st.none(), st.integers(1, 300).map(str), st.sampled_from(["0", "-3", "abc", "1e2", "9.5", "inf"]))
PATHS = st.one_of(
    st.sampled_from(CLIPS), st.sampled_from(["", "missing.mp4", "../up.mp4", "a b.mp4", "http://x/y.mp4"])
)
RANDOM = settings(
    max_examples=170,  # of each of the three tests
    deadline=None,
    derandomize=True,  # the same manifests on every machine
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Row:
    path: str
    text: str
    num_frames: str | None

    @property
    def sound(self) -> bool:
        """It has a clip, a plain caption and a plain number or none: nothing is a reason to drop it."""
        plain = re.fullmatch(r"[a-z ]{3,60}", self.text) and self.text not in ("nan", "none", "null")
        return (
            self.path in CLIPS
            and bool(plain)
            and (self.num_frames is None or (self.num_frames.isdigit() and self.num_frames != "0"))
        )


ROWS = st.lists(st.builds(Row, PATHS, TEXTS, COUNTS), max_size=6)
FORMATS = st.tuples(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"]), st.booleans())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three clips, in which the tests write their manifests."""
    made = tmp_path_factory.mktemp("manifests")
    for number, name in enumerate(CLIPS):
        write_video(made / name, 6, tint=TINTS[number])
    return made


def as_csv(rows: Sequence[Row], quoting: int, line_end: str, mark: bool) -> tuple[bytes, list[int]]:
    """The file, and the first line of each row."""
    out, lines = io.StringIO(newline=""), []
    if any("\r" in row.text for row in rows):  # csv.writer leaves it without quotes, where it ends the row
        quoting = csv.QUOTE_ALL
    writer = csv.writer(out, quoting=quoting, lineterminator=line_end)
    writer.writerow(["path", "text", "num_frames"])
    for row in rows:
        lines.append(len(re.findall(r"\r\n|\r|\n", out.getvalue())) + 1)
        writer.writerow([row.path, row.text, row.num_frames or ""])
    return out.getvalue().encode("utf-8-sig" if mark else "utf-8", "surrogatepass"), lines


def check_outcome(manifest: Manifest, rows: Sequence[Row], lines: Sequence[int]) -> None:
    """Each row is kept with its values or named among the dropped ones, and sound rows that come once are kept."""
    by_line = dict(zip(lines, rows, strict=True))
    kept = {int(row.location.rpartition(":")[2]): row for row in manifest.rows}
    dropped = [int(row.message.removeprefix(f"{manifest.path}:").partition(":")[0]) for row in manifest.dropped]
    assert sorted([*kept, *dropped]) == sorted(lines)
    for line, row in kept.items():
        assert row.text == by_line[line].text.strip()
        assert Path(row.path).name == Path(by_line[line].path).name
        count = by_line[line].num_frames
        assert row.num_frames == (None if count is None else int(float(count)))
    first = {}
    for line, row in by_line.items():
        if row.sound:
            first.setdefault(row.path, line)
    earlier = {row.path for line, row in by_line.items() if not row.sound and line in kept}
    assert {line for path, line in first.items() if path not in earlier} <= set(kept)


@RANDOM
@given(rows=ROWS, form=FORMATS)
def test_rows_of_a_sound_csv(folder: Path, rows: list[Row], form: tuple[int, str, bool]) -> None:
    path = folder / "sound.csv"
    data, lines = as_csv(rows, *form)
    path.write_bytes(data)
    manifest = read_manifest(str(path))
    check_outcome(manifest, rows, lines)
    assert Report.of(str(path), len(manifest.rows), manifest.dropped).rows == len(rows)
    if manifest.rows:
        check_clips(VideoTextDataset(str(path), num_frames=5, image_size=(16, 16)), manifest)


def check_clips(data: VideoTextDataset, manifest: Manifest) -> None:
    """Each kept row yields its own clip and caption, or its line is named, in what `check` counts and training reads."""
    rows, readable = {row.index: row for row in manifest.rows}, 0
    for number in range(len(data)):
        try:
            clip = data.clip(number, Draw(0, 0, 0))
        except BadClip as error:
            line, _, rest = str(error).removeprefix(f"{manifest.path}:").partition(": ")
            [row] = [row for row in rows.values() if row.location.endswith(f":{line}")]
            assert rest.startswith(row.path)
            assert Path(row.path).name not in CLIPS
            continue
        readable += 1
        row = rows[clip.row]
        assert clip.caption == row.text
        assert int(clip.video_CTHW.mean(dim=(1, 2, 3)).argmax()) == CLIPS.index(Path(row.path).name)
    assert data.inspect().kept == readable


@RANDOM
@given(rows=ROWS)
def test_rows_of_a_parquet_file(folder: Path, rows: list[Row]) -> None:
    path = folder / "sound.parquet"
    cells = {"path": [row.path for row in rows], "num_frames": [row.num_frames for row in rows]}
    texts = [row.text.encode("utf-8", "replace").decode() for row in rows]
    types = {name: pyarrow.string() for name in ("path", "text", "num_frames")}
    table = {name: pyarrow.array(values, types[name]) for name, values in {**cells, "text": texts}.items()}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    written = [Row(row.path, text, row.num_frames) for row, text in zip(rows, texts, strict=True)]
    check_outcome(read_manifest(str(path)), written, range(1, len(rows) + 1))


@RANDOM
@given(
    rows=st.lists(st.builds(Row, st.sampled_from(CLIPS), PLAIN, COUNTS), min_size=1, max_size=6),
    form=FORMATS,
    damages=DAMAGES,
)
def test_rows_of_a_damaged_csv(
    folder: Path, rows: list[Row], form: tuple[int, str, bool], damages: list[Damage]
) -> None:
    """No caption is invented or swallows another row, and every line of the file belongs to a row that is kept or named."""
    path = folder / "damaged.csv"
    whole, _ = as_csv(rows, *form)
    header, body = whole.split(b"\n", 1)
    for damage in damages:
        body = damage.apply(body)
    data = header + b"\n" + body
    path.write_bytes(data)
    try:
        manifest = read_manifest(str(path))
    except DataError as error:
        assert str(error).startswith(f"{path}:")  # noqa: PT017
        return
    text = data.decode("utf-8-sig", "surrogateescape").replace('""', '"')
    for row in manifest.rows:
        assert row.text.replace('""', '"') in text
        assert not any(clip in row.text for clip in CLIPS), "a caption that holds another row"
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", data.decode("utf-8-sig", "surrogateescape"))
    covered = []
    whole_rows = [int(row.location.rpartition(":")[2]) for row in manifest.rows]
    for row in manifest.dropped:
        first = int(row.message.removeprefix(f"{path}:").partition(":")[0])
        if row.reason in ("quote not closed", "text behind a quote"):
            covered.append(first)
            skipped = re.search(r"skipped with it: lines? (\d+)(?:-(\d+))?", row.message)
            covered += range(int(skipped[1]), int(skipped[2] or skipped[1]) + 1) if skipped else []
        else:
            whole_rows.append(first)
    for first in whole_rows:  # a cell in quotes may hold line breaks
        reader = csv.reader(lines[first - 1 :])
        next(reader)
        covered += range(first, first + reader.line_num)
    assert len(set(covered)) == len(covered)
    assert {number for number, line in enumerate(lines, 1) if line.strip() and number > 1} <= set(covered)


def test_commands_report_the_rows_of_a_damaged_csv(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` prints and one training step logs the counts of `read_manifest`, and neither ends in a traceback."""
    bench, path = Workbench(tmp_path, monkeypatch), folder / "commands.csv"
    rows = [Row(name, f"clip of number {number}", None) for number, name in enumerate([*CLIPS, "missing.mp4", ""])]
    header, body = as_csv(rows, csv.QUOTE_MINIMAL, "\n", False)[0].split(b"\n", 1)
    for damage in (Damage("insert", 0.2, ord('"')), Damage("cut", 0.6, 0), Damage("flip", 0.5, 255)):
        path.write_bytes(header + b"\n" + damage.apply(body))
        manifest = read_manifest(str(path))
        kept, dropped = len(manifest.rows), count_rows(manifest.dropped)
        assert kept
        for command in ("check", "train"):
            outcome = bench.train(path, command=command)
            assert outcome.has() == "exit 0"
            if command == "train":
                assert f"{kept + dropped} rows in, {kept} kept, {dropped} dropped" in outcome.text
            for row in manifest.dropped:
                assert row.reason in outcome.text
