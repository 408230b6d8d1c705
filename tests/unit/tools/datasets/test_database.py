"""Tables opened in DuckDB: types, damaged rows, shards, and what a query can reach."""

import json
import os
import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.table import write_table
from opensora.errors import ConfigError, DataError, OpenSoraError
from tools.datasets.database import Database

pytest.importorskip("duckdb")

Rows = list[tuple[Any, ...]]


def contents(path: Path) -> tuple[dict[str, str], Rows]:
    """Types and rows of a table as the database sees them."""
    with Database() as database:
        source = database.open(str(path))
        database.lock()
        rows = database.rows(f"SELECT * FROM {source.view}")
        assert source.rows == len(rows)
        return source.types, rows


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-20", ""], "BIGINT", [1, -20, None]),
        (["007", "8"], "VARCHAR", ["007", "8"]),
        (["-0", "+5"], "VARCHAR", ["-0", "+5"]),
        (["123456789012345678", "1"], "BIGINT", [123456789012345678, 1]),
        (["1234567890123456789", "1"], "VARCHAR", ["1234567890123456789", "1"]),
        (["1.5", "2", "1e-3", ".5", "nan"], "DOUBLE", [1.5, 2.0, 0.001, 0.5, None]),
        (["1", "NA", "None"], "BIGINT", [1, None, None]),
        (["nan", "None"], "VARCHAR", ["nan", "None"]),
        (["", ""], "VARCHAR", [None, None]),
        (["True", "False"], "BOOLEAN", [True, False]),
        (["True", "1"], "VARCHAR", ["True", "1"]),
        (["2024-01-01", "2024-01-02"], "VARCHAR", ["2024-01-01", "2024-01-02"]),
        (["1,5", " 2"], "VARCHAR", ["1,5", " 2"]),
    ],
)
def test_types_of_csv(tmp_path: Path, cells: list[str], kind: str, values: list[Any]) -> None:
    write_table(str(tmp_path / "a.csv"), [{"path": "a.mp4", "x": cell} for cell in cells])
    types, rows = contents(tmp_path / "a.csv")
    assert types == {"path": "VARCHAR", "x": kind}
    assert [row[1] for row in rows] == values


def test_odd_csv(tmp_path: Path) -> None:
    """Byte order mark, line breaks and commas inside quotes, columns without names, rows that lack their last cells."""
    (tmp_path / "a.csv").write_bytes('\ufeff,path,text\n0,"a, b.mp4","two\nlines ""q"""\n1,b.mp4\n'.encode())
    assert contents(tmp_path / "a.csv") == (
        {"column0": "BIGINT", "path": "VARCHAR", "text": "VARCHAR"},
        [(0, "a, b.mp4", 'two\nlines "q"'), (1, "b.mp4", None)],
    )


def test_types_of_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"path": "a.mp4", "n": 1, "x": 1, "ok": True, "id": "007", "tags": ["a", {"b": 1}], "mixed": 1},
        {"path": "b.mp4", "x": 1.5, "ok": None, "mixed": "1", "late": None, "big": 2**70},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    types, values = contents(tmp_path / "a.jsonl")
    assert list(types.values()) == [
        "VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN", "VARCHAR", "JSON", "JSON", "VARCHAR", "JSON"
    ]  # fmt: skip
    assert values[0] == ("a.mp4", 1, 1.0, True, "007", '["a", {"b": 1}]', "1", None, None)
    assert values[1] == ("b.mp4", None, 1.5, None, None, None, '"1"', None, str(2**70))
    with Database(str(tmp_path / "out.jsonl")) as database:
        source = database.open(str(tmp_path / "a.jsonl"))
        database.write(f"SELECT {source.selection(database.folder)} FROM {source.view}", str(tmp_path / "out.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in written[:1]] == rows[:1]
    assert written[1]["big"] == 2**70


def test_types_of_parquet_are_kept(tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("n", pyarrow.int16()),
            ("x", pyarrow.float32()),
            ("tags", pyarrow.list_(pyarrow.int8())),
        ]
    )
    table = pyarrow.table([["a.mp4", None], [1, 2], [float("nan"), 2.5], [[1, 2], None]], schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with Database(str(tmp_path / "out.parquet")) as database:
        source = database.open(str(tmp_path / "a.parquet"))
        database.write(f"SELECT {source.selection(database.folder)} FROM {source.view}", str(tmp_path / "out.parquet"))
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert [str(kind) for kind in written.schema.types] == ["string", "int16", "float", "list<element: int8>"]
    assert written["x"].to_pylist() == [None, 2.5]  # NaN is an empty cell
    assert written["tags"].to_pylist() == [[1, 2], None]


def test_nan_is_no_large_number(tmp_path: Path) -> None:
    """For DuckDB NaN exceeds every number, so that a clip without a score would be the best.

    The largest value that a Parquet file notes leaves NaN out, so that the optimizer would drop a test for it.
    """
    pyarrow.parquet.write_table(pyarrow.table({"aes": [float("nan"), 6.0, 4.0]}), tmp_path / "a.parquet")
    with Database() as database:
        source = database.open(str(tmp_path / "a.parquet"))
        assert database.rows(f"SELECT aes FROM {source.view} WHERE aes > 5") == [(6.0,)]


def test_shards_are_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_table(str(folder / "b.csv"), [{"path": "b.mp4", "x": "1.5", "id": "9"}])
    write_table(
        str(folder / "a.csv"), [{"path": "a.mp4", "x": "", "id": "007"}, {"path": "c.mp4", "x": "2", "id": "1"}]
    )
    (folder / ".hidden.csv").write_text("nothing")
    assert contents(folder) == (
        {"path": "VARCHAR", "x": "DOUBLE", "id": "VARCHAR"},
        [("a.mp4", None, "007"), ("c.mp4", 2.0, "1"), ("b.mp4", 1.5, "9")],
    )


def test_shards_of_different_types(tmp_path: Path) -> None:
    for name, values in (("a", [1]), ("b", ["x"])):
        pyarrow.parquet.write_table(pyarrow.table({"path": values}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"column 'path' holds BIGINT, and in .*b.parquet VARCHAR; allowed"):
        contents(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            "path,text\na.mp4,x,y\nb.mp4,z\n",
            r"a.csv:2: 1 more cells than the header.*; 1 row of .*--skip-damaged",
        ),
        ("a.jsonl", '{"path": "a"}\n[1]\n{\n', r"a.jsonl:2: the line is a JSON list.*; 2 rows of"),
        ("a.csv", "Path,path\na,b\n", "columns 'Path' and 'path' differ in upper and lower case alone"),
        ("a.parquet", "text", "not a Parquet file"),
        ("a.txt", "path\n", "not the name of a table; allowed: a file that ends in .csv, .parquet"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        contents(tmp_path / name)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    """By its own name, not that of the file that DuckDB reads."""
    table = pyarrow.table({"path": [f"{number}.mp4" for number in range(1000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[100:200] = bytes(100)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.parquet: .*{tmp_path}/a.parquet.*; correct the table"):
        contents(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_bytes(b"path,te\xffxt\na.mp4,b\n")
    with pytest.raises(DataError, match=r"b.csv: the names of the columns are not UTF-8"):
        contents(tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_random_damage_is_a_sentence(tmp_path: Path, name: str) -> None:
    rows = [{"path": f"{n}.mp4", "text": f'clip {n} "q"\nline', "aes": n / 7, "ok": n > 9} for n in range(20)]
    write_table(str(tmp_path / name), rows)
    data, rng = (tmp_path / name).read_bytes(), random.Random(0)
    for _ in range(25):
        damaged = bytearray(data[: rng.choice([len(data), rng.randrange(1, len(data))])])
        for _ in range(rng.randint(0, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        with suppress(OpenSoraError), Database() as database:
            source = database.open(str(tmp_path / name), skip_damaged=True)
            database.rows(f"SELECT * FROM {source.view}")


def test_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        contents(tmp_path / "a.csv")
    with pytest.raises(DataError, match="a folder without tables"):
        contents(tmp_path)
    with pytest.raises(ConfigError, match="--memory-gb 0; allowed"):
        Database(memory_gb=0)


def test_damaged_rows_are_skipped_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,text\na.mp4,x,y\nb.mp4,z\n")
    with Database() as database:
        source = database.open(str(tmp_path / "a.csv"), skip_damaged=True)
        assert database.rows(f"SELECT * FROM {source.view}") == [("b.mp4", "z")]
    assert (source.damaged_rows, len(source.damaged)) == (1, 1)
    assert source.damaged[0].startswith(f"{tmp_path}/a.csv:2: 1 more cells")


@pytest.mark.parametrize("name", ["a'b*[1]?.parquet", '-x y\n"q😀;rm -rf.parquet', "a=1.csv", "~.csv"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_table(str(tmp_path / name), [{"path": "a.mp4"}])
    assert contents(tmp_path / name) == ({"path": "VARCHAR"}, [("a.mp4",)])


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither after success nor after an error; an older output stays until the new one is whole."""
    write_table(str(tmp_path / "a.csv"), [{"path": "a.mp4"}])
    out = tmp_path / "new" / "out.parquet"
    with Database(str(out)) as database:
        source = database.open(str(tmp_path / "a.csv"))
        assert database.write(f"SELECT {source.selection(database.folder)} FROM {source.view}", str(out)) == 1
    assert os.listdir(out.parent) == ["out.parquet"]
    before = out.read_bytes()
    with Database(str(out)) as database:
        source = database.open(str(tmp_path / "a.csv"))
        with pytest.raises(DataError, match=r"Could not convert string 'a\.mp4' to INT32"):
            database.write(f"SELECT CAST(path AS INT) FROM {source.view}", str(out))
    assert os.listdir(out.parent) == ["out.parquet"]
    assert out.read_bytes() == before
    assert pyarrow.parquet.read_table(out).to_pylist() == [{"path": f"{tmp_path}/a.mp4"}]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system, /dev/shm")
@pytest.mark.parametrize("name", ["b.parquet", "b.csv", "b"])
def test_an_output_on_another_file_system(tmp_path: Path, name: str) -> None:
    """As the second one of tools.datasets.split."""
    write_table(str(tmp_path / "a.csv"), [{"path": "/a.mp4"}])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other, Database(str(tmp_path / "out.parquet")) as database:
        source = database.open(str(tmp_path / "a.csv"))
        for _ in range(2):  # the second takes the place of the first
            assert database.write(f"SELECT * FROM {source.view}", f"{other}/{name}") == 1
        assert os.listdir(other) == [name]
        assert contents(Path(other, name))[1] == [("/a.mp4",)]


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    rows = 400_000  # several row groups, more than one thread
    table = pyarrow.table({"n": pyarrow.array(range(rows)), "path": pyarrow.array(["a.mp4"] * rows)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50_000)
    with Database(str(tmp_path / "out.parquet")) as database:
        source = database.open(str(tmp_path / "a.parquet"))
        database.lock()
        query = f"SELECT {source.selection(database.folder)} FROM {source.view} WHERE n % 3 = 0"
        assert database.write(query, str(tmp_path / "out.parquet")) == 133_334
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")["n"].to_pylist()
    assert written == list(range(0, rows, 3))
