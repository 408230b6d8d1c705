import pytest

from opensora.cli import command_parser
from opensora.cli.command_parser import CommandParser, run_on_ranks


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser(prog="opensora train")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks")
    return parser


def test_flags_and_overrides_in_any_order(parser: CommandParser) -> None:
    arguments = parser.read(["a.py", "--ranks", "2", "steps=3"])
    assert (arguments.config, arguments.ranks, arguments.overrides) == ("a.py", "2", ["steps=3"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.py", "--steps", "5"], "found '--steps 5'; allowed: --help, --ranks and key=value; write steps=5"),
        (["a.py", "--steps=5", "x=1"], "found '--steps=5'; allowed: --help, --ranks and key=value; write steps=5"),
        (["a.py", "--model.depth", "2"], "write model.depth=2"),
        (["a.py", "--grad-clip", "--ranks", "2"], "write grad_clip=VALUE"),
        (["a.py", "--wandb"], "found '--wandb'; allowed: --help, --ranks and key=value; write wandb=VALUE"),
        (["a.py", "-x"], "found '-x'; allowed: --help, --ranks and key=value; remove it"),
        ([], "the following arguments are required: config"),
    ],
)
def test_mistakes_are_one_sentence(
    parser: CommandParser, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser.read(words)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: command line: ")
    assert expected in line
    assert line.endswith("; see opensora train --help")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """The calls that would have started ranks."""
    calls: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(command_parser, "start_ranks", lambda *call: calls.append(call) or 7)
    return calls


@pytest.mark.parametrize("words", [["--ranks", "2", "a.py", "--seed", "3"], ["a.py", "--seed", "3", "--ranks=2"]])
def test_ranks_get_the_other_arguments(starts: list[tuple[int, list[str]]], words: list[str]) -> None:
    assert run_on_ranks("opensora.cli.sample", words) == 7
    assert starts == [(2, ["-m", "opensora.cli.sample", "a.py", "--seed", "3"])]


def test_no_flag_starts_nothing(starts: list[tuple[int, list[str]]]) -> None:
    assert run_on_ranks("opensora.cli.train", ["a.py", "steps=3"]) is None
    assert starts == []


@pytest.mark.parametrize("words", [["--ranks=0"], ["--ranks", "two"], ["--ranks"], ["--ranks=-1"]])
def test_number_of_ranks(
    starts: list[tuple[int, list[str]]], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run_on_ranks("opensora.cli.train", ["a.py", *words]) == 2
    assert "error: command line: --ranks: found" in capsys.readouterr().err
    assert starts == []
