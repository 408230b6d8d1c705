"""A tool on a real cluster of two workers on this machine: the same output as without it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensora.datasets.table import read_table, write_table
from opensora.errors import ConfigError
from tests.unit.tools.tool_functions import Batches, double
from tools.ray_engine import _connect
from tools.runner import main

ray = pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
CLUSTER = ["--engine", "ray", "--ray-address", "local", "--workers", "2"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Started once for all tests; the engine takes the one that its program has connected to."""
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_table("in.csv", [{"path": f"{name}.mp4", "name": name} for name in ("a", "bad", "b", "odd", "c", "d")])
    return tmp_path


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(double, ["in.csv", "local.csv"]) == 1
    assert main(double, ["in.csv", "out.csv", *CLUSTER]) == 1
    assert Path("out.csv").read_bytes() == Path("local.csv").read_bytes()
    errors = [Path(f"{name}.csv.errors.jsonl").read_text() for name in ("local", "out")]
    assert errors[0] == errors[1]
    assert capsys.readouterr().err.count("in.csv:5: unexpected KeyError: 'surprise'") == 2


def test_batches() -> None:
    """The object is made once in each of the two processes."""
    assert main(Batches, ["in.csv", "out.csv", "--where", "name <> 'odd'", *CLUSTER], batch_size=2) == 0
    rows = read_table("out.csv").rows
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert {row["loaded"] for row in rows} == {"1"}
    assert str(os.getpid()) not in {row["pid"] for row in rows}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--worker-cpus", "1000"], "they need 2000 CPUs, 1000 each, and the cluster has 2"),
        (["--worker-gpus", "1"], "they need 2 GPUs, 1 each, and the cluster has 0"),
        (["--times", "-1"], "double: --times must not be negative"),
    ],
)
def test_what_the_user_can_correct(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(double, ["in.csv", "out.csv", *CLUSTER, *flags]) == 2
    assert says in capsys.readouterr().err


def test_no_cluster() -> None:
    with pytest.raises(ConfigError, match=r"--ray-address 127\.0\.0\.1:1: no cluster answers \(.*refused"):
        _connect("127.0.0.1:1")
