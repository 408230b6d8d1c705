"""Prompts rewritten by a chat server: what is requested, what is kept, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from opensora.errors import ConfigError
from opensora.registry import REFINERS, build
from opensora.sampling.metadata import file_stem, record, request_hash
from opensora.sampling.prompt_syntax import words_of
from opensora.sampling.refiners.base import LONGEST, clean, refine_on_main_rank, refine_prompts
from opensora.sampling.refiners.chat_refiner import INSTRUCTION
from opensora.sampling.remake import run_command
from opensora.sampling.requests import collect_requests
from tests.support.chat_server import ChatServer, Reply, completion, failure
from tests.support.fake_sampler import SETTINGS, request

RUN: dict[str, Any] = dict(num_frames=4, image_size=(16, 16), fps=8.0, seed=42)


def louder(body: dict[str, Any], number: int) -> Reply:
    return completion(f' "{body["messages"][1]["content"].upper()},\nat dawn." ')


def config(server: ChatServer, **more: Any) -> dict[str, Any]:
    return {"type": "ChatRefiner", "url": server.url, "model": "tiny", "retries": 0, **more}


def test_the_answer_in_one_line_takes_the_place_of_the_prompt(tmp_path: Path) -> None:
    with ChatServer(louder) as server:
        answers = refine_on_main_rank(config(server), tmp_path, ["a cat", "a dog", "a cat"])
    assert answers == {"a cat": "A CAT, at dawn.", "a dog": "A DOG, at dawn."}
    assert [body["messages"][1]["content"] for body in sorted(server.requests, key=str)] == ["a cat", "a dog"]
    assert {body["messages"][0]["content"] for body in server.requests} == {INSTRUCTION}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.requests} == {("tiny", 0, 512)}
    assert server.keys == [None, None]


def test_answers_are_kept_by_prompt_and_settings(tmp_path: Path) -> None:
    with ChatServer(louder) as server:
        for more in ({}, {}, {"temperature": 0.5}, {"model": "large"}, {"instruction": "Be brief."}):
            refine_on_main_rank(config(server, **more), tmp_path, ["a cat"])
        assert len(server.requests) == 4
        (damaged, *_) = (tmp_path / "refined-prompts").iterdir()
        damaged.write_text("{")
        for more in ({}, {"temperature": 0.5}, {"model": "large"}, {"instruction": "Be brief."}):
            refine_on_main_rank(config(server, **more), tmp_path, ["a cat"])
    assert len(server.requests) == 5
    kept = json.loads(damaged.read_text())
    assert (kept["prompt"], kept["refined"]) == ("a cat", "A CAT, at dawn.")


def test_other_ranks_do_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora.sampling.refiners.base.rank_from_environment", lambda: (1, 2))
    with ChatServer(louder) as server:
        assert refine_on_main_rank(config(server), tmp_path, ["a cat"]) == {}
    assert server.requests == []


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" sk-1 \n")
    with ChatServer(louder) as server:
        refine_on_main_rank(config(server, key_file=str(tmp_path / "key")), tmp_path, ["a cat"])
    assert server.keys == ["Bearer sk-1"]
    assert "sk-1" not in next((tmp_path / "refined-prompts").iterdir()).read_text()


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (failure(401, "who are you"), "refine.key_file is not set; name a file with the right key"),
        (failure(404, "no such model"), "the model is unknown there"),
        (
            failure(503, "busy"),
            "prompt 'a cat': .*answered 503 .busy., after 1 tries; try again later; or sample without",
        ),
        (completion(""), "an empty answer"),
        (completion("A cat", "length"), "cut off at 512 tokens; raise refine.max_tokens"),
        (completion("x" * (LONGEST + 1)), "is of 4,001 characters; allowed: one paragraph of up to 4,000"),
        (completion("|0|a cat|1|a dog"), "is in the syntax of loops"),
        (completion('""'), "is empty; allowed"),
        ((200, {}, "<html>"), "no chat completion"),
    ],
)
def test_no_prompt_is_sampled_as_it_was_where_the_answer_fails(tmp_path: Path, reply: Reply, sentence: str) -> None:
    with ChatServer(lambda body, number: reply) as server, pytest.raises(ConfigError, match=sentence):
        refine_on_main_rank(config(server), tmp_path, ["a cat"])
    assert not list(tmp_path.glob("refined-prompts/*"))


def test_settings_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    good = {"type": "ChatRefiner", "url": "http://127.0.0.1:9/v1", "model": "tiny"}
    with pytest.raises(ConfigError, match="cannot be reached"):
        refine_prompts(build(REFINERS, good), tmp_path, ["a cat"])
    (tmp_path / "two").write_text("a key")
    for more, sentence in (
        ({"model": " "}, "allowed: a name"),
        ({"parallel": 0}, "1 to 64"),
        ({"url": "localhost:8000"}, "allowed: http://HOST:PORT/v1"),
        ({"key_file": str(tmp_path / "none")}, "cannot be read"),
        ({"key_file": str(tmp_path / "two")}, "holds 2 words; allowed: the key alone"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build(REFINERS, good | more)


def test_words_of_loops_are_refined_and_scores_follow() -> None:
    requested: list[str] = []

    def refine(texts: list[str]) -> dict[str, str]:
        requested.extend(texts)
        return {text: text.upper() for text in texts}

    run = RUN | {"refine": refine, "change": lambda text: f"{text} aesthetic score: 6.5."}
    (one,) = collect_requests(["a cat"], None, **run)
    assert (one.prompt, one.original_prompt) == ("A CAT aesthetic score: 6.5.", "a cat")
    from opensora.sampling.reference_frames import ReferenceKeys

    (two,) = collect_requests(["|0|a cat|1|a dog"], None, reference_keys=ReferenceKeys(loop=2), **run)
    assert two.prompt == "|0|A CAT aesthetic score: 6.5.|1|A DOG aesthetic score: 6.5."
    assert requested == ["a cat", "a cat", "a dog"]
    (plain,) = collect_requests(["a cat"], None, **RUN)
    assert plain.original_prompt == ""


def test_the_words_alone_decide_the_video() -> None:
    """A file whose prompt was refined is that of the same words as a prompt, and holds both."""
    written, refined = request("A CAT"), request("A CAT", original_prompt="a cat")
    assert request_hash(written, SETTINGS) == request_hash(refined, SETTINGS)
    assert file_stem(written) == file_stem(refined)
    assert record(refined, SETTINGS)["original_prompt"] == "a cat"
    assert "original_prompt" not in record(written, SETTINGS)


def test_the_command_of_a_file_needs_no_server() -> None:
    words = ["refine.url=http://x/v1", "refine.type=ChatRefiner", "load=a"]
    assert run_command("c.py", words, {"refine"}) == ["opensora", "sample", "c.py", "load=a", "refine=None"]
    assert run_command("c.py", words, set()) == ["opensora", "sample", "c.py", "load=a"]


def test_answers_are_cleaned() -> None:
    assert clean('"a \t cat\x00\n runs"', "a cat") == "a cat runs"
    assert clean('a "cat" runs', "a cat") == 'a "cat" runs'
    assert words_of("|0|a cat|1|a dog") == ["a cat", "a dog"]
    assert words_of("a | cat") == ["a | cat"]
