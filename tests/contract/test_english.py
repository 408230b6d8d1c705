"""Plain words in docstrings, comments, messages, docs and names: the banned ones, each with what to write instead.

Run for some files: python -m tests.contract.test_english opensora/parallel docs/training.md
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs",
    "opensora",
    "bench",
    "tools",
    "tests",
]  # folders and files that are checked

# word (a regular expression, case is ignored) -> what to write instead
WORDS = {
    r"told|tells|tell": "say, report or pass",
    r"borne|bears": "tolerated",
    r"mend|mends|mended|mending": "fix",
    r"how-manieth": "the index of",
    r"beside": "next to, or besides",
    r"asked|asks|asking": "called, requested or needed",
    r"heed|heeds|heeded": "check",
    r"rival|rivals": "discriminator",
    r"aside": "evaluation mode, or apart",
    r"so many|as many": "the number",
    r"what became of": "the outcome of",
    r"nobody|whoever|whosoever": "name who or what it is",
    r"thereof|whereof|wherein|therein|hitherto": "of it, in which",
    r"keeper": "checkpointer",
    r"colour|colours|normalise\w*|initialise\w*|behaviour|neighbour\w*|grey": "American spelling",
}
# names of variables, parameters, functions and classes -> what kind of name to choose
NAMES = {
    name: "what the value is"
    for name in ("told", "found", "given", "taken", "bound", "drawn", "seen", "held", "asked", "mine", "said", "judged")
}
NAMES |= {"rival": "discriminator", "keeper": "checkpointer", "aside": "evaluation_mode", "beside": "adjacent"}
# a docstring is a statement of what the thing is or does
RIDDLES = re.compile(r"\s*(What|Which|Whether|How|Where|Who|Whose)\b")
ALLOWED = {  # (file, word): words that the format of another project prescribes
}

_WORDS = {word: re.compile(rf"(?<![\w.`'\"-])(?:{word})(?![\w`'\"(=-])", re.IGNORECASE) for word in WORDS}


def files(paths: list[str]) -> Iterator[Path]:
    for path in paths:
        start = ROOT / path
        inside = (each for each in start.rglob("*") if each.suffix in (".py", ".md"))
        every = sorted(inside) if start.is_dir() else [start]
        yield from (each for each in every if each != Path(__file__))  # this file lists the words


def offenses(path: Path) -> Iterator[str]:
    """Each offense of a Python or Markdown file as `file:line: what; write ...`."""
    name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        prose = [(number, line) for number, line in enumerate(_without_code(text).splitlines(), 1)]
    else:
        prose = [*_prose(text)]
        yield from (f"{name}:{each}" for each in _names_and_docstrings(text))
    for line, sentence in prose:
        for word, pattern in _WORDS.items():
            for match in pattern.finditer(sentence):
                if (str(name), match[0].lower()) not in ALLOWED:
                    yield f"{name}:{line}: {match[0]!r}; write {WORDS[word]}"


def _without_code(text: str) -> str:
    """Markdown with the code in fences blanked, at equal line numbers."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and strings of more than one word, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def _names_and_docstrings(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node, clean=False) or ""
            if RIDDLES.match(docstring):
                yield f"{getattr(node, 'lineno', 1)}: docstring begins with {docstring.split()[0]!r}; say what it is or does"
        yield from _words_of_test_names(node)
        for name in _new_names(node):
            if name.lstrip("_") in NAMES:
                yield f"{node.lineno}: name {name!r}; name {NAMES[name.lstrip('_')]}"  # type: ignore[attr-defined]


def _words_of_test_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
        for part in node.name.split("_"):
            for word in WORDS:
                if re.fullmatch(word, part):
                    yield f"{node.lineno}: test {node.name}: {part!r}; write {WORDS[word]}"


def _new_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name


def test_plain_english() -> None:
    report = [offense for path in files(CHECKED) for offense in offenses(path)]
    assert not report, "\n".join(report)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# nobody told it\nx = 1\n", [":1: 'nobody'", ":1: 'told'"]),
        ('"""What it gives."""\n', [":1: docstring begins with 'What'"]),
        ("found = 1\n", [":1: name 'found'"]),
        ("def f(given): return given\n", [":1: name 'given'"]),
        ("def test_error_is_told() -> None: ...\n", [":1: test test_error_is_told: 'told'"]),
        ("def test_nan_gradient_stops_run() -> None: ...\n", []),
        ('raise_(f"x: found 3; allowed: 1; correct it")\n', []),
        ('key = "told"\n', []),
    ],
)
def test_offenses_are_seen(source: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(source)
    lines = list(offenses(tmp_path / "a.py"))
    assert len(lines) == len(expected), lines
    assert all(any(part in line for line in lines) for part in expected)


if __name__ == "__main__":
    report = [offense for path in files(sys.argv[1:]) for offense in offenses(path)]
    print("\n".join(report))
    sys.exit(bool(report))
