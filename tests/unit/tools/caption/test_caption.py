import json
import sys
from pathlib import Path

import pytest

from opensora.datasets.table import read_table, write_table
from opensora.errors import BadClip, ConfigError
from tests.support.chat_server import ChatServer, Reply, completion, failure
from tests.support.media_files import write_video
from tools.caption.caption import Caption, main, with_settings
from tools.pipeline import _resumes
from tools.runner import LeftOut

SERVER = "captioner = dict(type='server', url='{url}', model='tiny', prompting=dict(frames=2), parallel=1)\n"


def rows_with_sidecars(folder: Path, *texts: str | None) -> list[dict[str, object]]:
    for number, text in enumerate(texts):
        if text is not None:
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return [{"path": str(folder / f"{number}.mp4"), "fps": 24} for number in range(len(texts))]


def test_captions_are_cleaned_and_marked(tmp_path: Path) -> None:
    rows = rows_with_sidecars(tmp_path, "The video shows **a dog** on the beach.", "A cat.")
    assert Caption(captioner="sidecar")(rows) == [
        {"path": rows[0]["path"], "text": "A dog on the beach.", "fps": 24, "captioner": "sidecar"},
        {"path": rows[1]["path"], "text": "A cat.", "fps": 24, "captioner": "sidecar"},
    ]
    assert Caption(captioner="sidecar", clean=False)(rows)[0]["text"] == "The video shows **a dog** on the beach."  # type: ignore[index]


def test_bad_rows_stay_in_their_places(tmp_path: Path) -> None:
    rows = rows_with_sidecars(
        tmp_path, "A dog.", None, "Ein Hund läuft am Strand.", "I'm sorry, I cannot help.", "A cat."
    )
    results = Caption(captioner="sidecar")(rows)
    assert [results[0]["text"], results[4]["text"]] == ["A dog.", "A cat."]  # type: ignore[index]
    assert "has no caption file" in str(results[1])
    assert isinstance(results[2], LeftOut)
    assert str(results[2]).endswith("the caption is in German: 'Ein Hund läuft am Strand.'; --language any takes it")
    assert isinstance(results[3], BadClip)
    assert "refused" in str(results[3])
    assert Caption(captioner="sidecar", language="any")(rows)[2]["text"] == "Ein Hund läuft am Strand."  # type: ignore[index]


def test_earlier_text(tmp_path: Path) -> None:
    rows = [{**row, "text": text} for row, text in zip(rows_with_sidecars(tmp_path, "A dog.", "A cat."), ("old", None))]
    kept = Caption(captioner="sidecar", only_missing=True)(rows)
    assert [row["text"] for row in kept] == ["old", "A cat."]  # type: ignore[index]
    assert [row["captioner"] for row in kept] == [None, "sidecar"]  # type: ignore[index]
    moved = Caption(captioner="sidecar", keep_as="text_before")(rows)
    assert [(row["text"], row["text_before"]) for row in moved] == [("A dog.", "old"), ("A cat.", None)]  # type: ignore[index]
    with pytest.raises(ConfigError, match="found 'text'; allowed: a column of its own"):
        Caption(captioner="sidecar", keep_as="text")


def test_motion_words(tmp_path: Path) -> None:
    (row,) = rows_with_sidecars(tmp_path, "A dog.")
    (result,) = Caption(captioner="sidecar", motion_words="sentences")([{**row, "cmotion": "zoom_in"}])
    assert result["text"] == "A dog. The camera zooms in."  # type: ignore[index]


def test_second_pass_refines_what_the_first_said(tmp_path: Path) -> None:
    def reply(body: dict[str, object], number: int) -> Reply:
        content = body["messages"][0]["content"]  # type: ignore[index]
        if isinstance(content, str):
            return completion(f"Refined: {content}" if "Good" in content else "I'm sorry, I can't.")
        return completion(["The video shows good dogs.", "I cannot view videos.", "Bad dogs run."][number])

    rows: list[dict[str, object]] = [{"path": write_video(tmp_path / f"{number}.mp4", 4)} for number in range(3)]
    with ChatServer(reply) as server:
        config = tmp_path / "config.py"
        config.write_text(SERVER.format(url=server.url) + "refine = captioner\nrefine_prompt = 'Again: {text}'\n")
        results = Caption(captioner=str(config))(rows)
    assert results[0]["text"] == "Refined: Again: Good dogs."  # type: ignore[index]
    assert results[0]["captioner"] == "server:tiny+server:tiny"  # type: ignore[index]
    assert [isinstance(result, BadClip) for result in results] == [False, True, True]
    assert len(server.requests) == 5  # the row that was refused in the first pass has no second


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["caption", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command in this process: errors, left out rows, history, cost; a changed config makes the rows again."""
    rows = [{"path": write_video(tmp_path / f"{number}.mp4", 4)} for number in range(3)] + [{"path": "missing.mp4"}]
    table, output, config = (str(tmp_path / name) for name in ("clips.csv", "captions.csv", "config.py"))
    write_table(table, rows)

    def reply(body: dict[str, object], number: int) -> Reply:
        usage = {"prompt_tokens": 500, "completion_tokens": 10}
        return completion("Ein Hund läuft am Strand." if number == 1 else "The video shows a dog.", usage=usage)

    def run(*words: str) -> int:
        return command(monkeypatch, table, output, "--captioner", config, *words)

    with ChatServer(reply) as server:
        text = SERVER.format(url=server.url).replace("parallel=1", "parallel=1, price=(2.0, 4.0)")
        Path(config).write_text(text)
        assert run() == 0
        printed = capsys.readouterr().err
        assert f"{server.url}: 3 answers, 1,500 tokens of prompts, 30 of answers: $0.0031" in printed
        assert "the caption is in German" in printed
        assert [(row["text"], row["captioner"]) for row in read_table(output).rows] == [("A dog.", "server:tiny")] * 2
        (error,) = [json.loads(line) for line in Path(f"{output}.errors.jsonl").read_text().splitlines()]
        assert "missing.mp4: no such file" in error["error"]
        arguments = json.loads(Path(f"{output}.history.json").read_text())[-1]["arguments"]
        assert json.loads(arguments["settings"])["captioner"]["model"] == "tiny"
        assert run("--resume") == 0
        assert len(server.requests) == 4  # the row that was left out is tried again
        Path(config).write_text(text.replace("tiny", "large"))
        assert run("--resume") == 0
        assert [row["captioner"] for row in read_table(output).rows] == ["server:large"] * 3


def test_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    rows = [{"path": write_video(tmp_path / f"{number}.mp4", 4)} for number in range(2)]
    write_table(str(tmp_path / "clips.csv"), rows)
    config = tmp_path / "config.py"

    def reply(body: dict[str, object], number: int) -> Reply:
        return completion("A dog.") if number else failure(400, "the key sk-very-secret is odd")

    with ChatServer(reply) as server:
        config.write_text(SERVER.format(url=server.url))
        command(monkeypatch, str(tmp_path / "clips.csv"), str(tmp_path / "out.parquet"), "--captioner", str(config))
    assert server.keys == ["Bearer sk-very-secret"] * 2
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"the key *** is odd" in written
    assert b"sk-very" not in written
    assert "sk-very" not in "".join(capfd.readouterr())


def test_config_is_part_of_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("captioner = dict(type='sidecar', key='a')\n")
    words = with_settings(["in.csv", "out.csv", "--captioner", str(config)])
    assert json.loads(words[-1].removeprefix("--settings=")) == {"captioner": {"type": "sidecar", "key": "a"}}
    assert with_settings(["in.csv", "out.csv", "--captioner=sidecar"]) == ["in.csv", "out.csv", "--captioner=sidecar"]
    assert with_settings(words) == words


def test_pipelines_go_on_with_it_after_a_stop() -> None:
    assert _resumes("tools.caption.caption")
    assert _resumes("tools.caption.read_text")


def test_unknown_captioner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "in.csv", "out.csv", "--captioner", "qwen.py") == 2
    assert "qwen.py: no such file" in capsys.readouterr().err
