"""Expressions of a user: what they reach, and the sentences about wrong ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from opensora.datasets.table import write_table
from opensora.errors import ConfigError
from tools.datasets.database import Database, Source
from tools.datasets.expression import condition, value

pytest.importorskip("duckdb")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Database, Source]]:
    write_table(
        str(tmp_path / "a.csv"), [{"path": "a.mp4", "aes": 4}, {"path": "it's.mp4", "aes": 6}, {"path": "c.mp4"}]
    )
    with Database(str(tmp_path / "out.csv")) as database:
        source = database.open(str(tmp_path / "a.csv"))
        database.lock()
        yield database, source


@pytest.mark.parametrize(
    ("expression", "paths"),
    [
        ("aes > 5", ["it's.mp4"]),
        ("aes > 5 OR path = 'c.mp4'", ["it's.mp4", "c.mp4"]),
        ("aes > 5 -- the best", ["it's.mp4"]),
        ("path LIKE '%''%'", ["it's.mp4"]),
        ("aes IS NULL", ["c.mp4"]),
        ("aes = (SELECT max(aes) FROM manifest)", ["it's.mp4"]),
        ('"AES" /* any case */ < 5', ["a.mp4"]),
        ("TRY_CAST(path AS INT) IS NULL", ["a.mp4", "it's.mp4", "c.mp4"]),
    ],
)
def test_condition(opened: tuple[Database, Source], expression: str, paths: list[str]) -> None:
    database, source = opened
    sql = condition(database, source, expression, "--keep")
    assert [path for (path,) in database.rows(f"SELECT path FROM {source.view} WHERE {sql}")] == paths


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("aess > 5", 'Referenced column "aess" not found'),
        ("aes", "its value is BIGINT, not true or false"),
        ("aes > 5 LIMIT 1", "syntax error at or near"),
        ("aes > 5 and", "syntax error at or near"),
        ("aes > 5, aes < 6", "its value is .*, not true or false"),
        ("true) FROM manifest WHERE (true", "rror|unexpected|must|FROM"),
        ("sum(aes) > 5", "WHERE clause cannot contain aggregates"),
        ("unnest([true, false])", "UNNEST not supported"),
        ("aes > $1", "Values were not provided"),
        ("  ", "it is empty"),
        ("text LIKE 5 5", "syntax error"),
    ],
)
def test_wrong_expressions(opened: tuple[Database, Source], expression: str, why: str) -> None:
    """Each is named with DuckDB's reason, an example, and the columns there are."""
    with pytest.raises(ConfigError, match=why) as error:
        condition(*opened, expression, "--keep")
    assert str(error.value).startswith(f"--keep {expression!r}: ")
    assert str(error.value).endswith("/a.csv: path VARCHAR, aes BIGINT")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


SECRET = "/etc/passwd"


@pytest.mark.parametrize(
    "expression",
    [
        f"path IN (SELECT content FROM read_text('{SECRET}'))",
        f"EXISTS (FROM read_csv('{SECRET}'))",
        f"EXISTS (FROM '{SECRET}')",
        "EXISTS (FROM glob('/etc/*'))",
        "EXISTS (FROM read_parquet('https://example.org/a.parquet'))",
        "EXISTS (FROM query('COPY (SELECT 1) TO ''/tmp/evil.csv'''))",
        "EXISTS (FROM query('SET enable_external_access = true'))",
        "COPY manifest TO '/tmp/evil.csv'",
        "ATTACH '/tmp/evil.db'",
        "true; ATTACH '/tmp/evil.db'",
        "true); COPY manifest TO '/tmp/evil.csv'; SELECT (true",
        "SET memory_limit = '1TB'",
        "getenv('HOME') = ''",
        "EXISTS (FROM opened)",
        "EXISTS (FROM SECRET)",
    ],
)
def test_files_and_settings_cannot_be_reached(opened: tuple[Database, Source], expression: str) -> None:
    database, source = opened
    with pytest.raises(ConfigError):
        condition(database, source, expression, "--keep")
    assert not Path("/tmp/evil.csv").exists()
    assert not Path("/tmp/evil.db").exists()
    for statement in (f"SELECT * FROM read_text('{SECRET}')", "SET enable_external_access = true", "SET threads = 1"):
        with pytest.raises(Exception, match=r"disabled by configuration|locked|Cannot"):
            database.execute(statement)


def test_value(opened: tuple[Database, Source]) -> None:
    database, source = opened
    sql = value(database, source, "aes * 2 -- twice", "--balance")
    assert database.rows(f"SELECT {sql} FROM {source.view}") == [(8,), (12,), (None,)]
    with pytest.raises(ConfigError, match=r"--balance 'x': .*columns of"):
        value(database, source, "x", "--balance")


def test_a_cell_that_makes_text_of_numbers_is_named(tmp_path: Path) -> None:
    write_table(
        str(tmp_path / "a.csv"), [{"path": "a.mp4", "aes": cell} for cell in ("4.5", "5", "", "nan", "6,2", "7")]
    )
    with Database() as database:
        source = database.open(str(tmp_path / "a.csv"))
        with pytest.raises(ConfigError, match=r"; aes is text because a cell is '6,2'; correct it$"):
            condition(database, source, "aes > 5", "--keep")
