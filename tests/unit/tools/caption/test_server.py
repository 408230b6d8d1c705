import base64
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.chat_client import Answer
from opensora.errors import BadClip, ConfigError
from tests.support.chat_server import ChatServer, Reply, completion, failure
from tests.support.media_files import frame_number, write_video
from tools.caption.chat_captioner import Request
from tools.caption.server import ServerCaptioner, _print_usage, messages


def prompt_of(body: dict[str, object]) -> str:
    content = body["messages"][-1]["content"]  # type: ignore[index]
    return content if isinstance(content, str) else content[-1]["text"]


def test_frames_and_prompt_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-1\n")
    row = {"path": write_video(tmp_path / "clip.mp4", 24)}
    prompting = {"prompt": "Say it.", "frames": 3, "system": "Be short."}
    with ChatServer(lambda body, number: completion("A dog runs.")) as server:
        captioner = ServerCaptioner(server.url, "tiny", prompting, "SOME_KEY", max_tokens=50, body={"seed": 7})
        assert captioner.caption([row]) == [Answer("A dog runs.")]
    (body,) = server.requests
    assert server.keys == ["Bearer sk-1"]
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "tiny",
        "max_tokens": 50,
        "temperature": 0.0,
        "seed": 7,
    }
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert user["content"][-1] == {"type": "text", "text": "Say it."}
    urls = [part["image_url"]["url"].split(",", 1) for part in user["content"][:-1]]
    assert [head for head, _ in urls] == ["data:image/jpeg;base64"] * 3
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for _, data in urls]
    assert [frame_number(picture) for picture in pictures] == [4, 12, 20]
    assert captioner.label == "server:tiny"


def test_words_alone_are_plain_text() -> None:
    assert messages(Request("Merge."), 85) == [{"role": "user", "content": "Merge."}]


def test_members_can_be_renamed() -> None:
    captioner = ServerCaptioner(
        "http://h/v1", "tiny", body={"max_tokens": None, "max_completion_tokens": 9}, temperature=None
    )
    assert captioner._members == {"model": "tiny", "max_completion_tokens": 9}


def test_requests_go_in_parallel_and_keep_their_order() -> None:
    together = threading.Barrier(3, timeout=5)  # passes only if three requests are under way at once

    def reply(body: dict[str, object], number: int) -> Reply:
        together.wait()
        return completion(f"Answer to {prompt_of(body)}")

    with ChatServer(reply) as server:
        captioner = ServerCaptioner(server.url, "tiny", parallel=3)
        results = captioner.answer([Request(f"question {number}") for number in range(6)])
    assert results == [Answer(f"Answer to question {number}") for number in range(6)]


def test_one_bad_request_among_good_ones() -> None:
    def reply(body: dict[str, object], number: int) -> Reply:
        return failure(400, "too long") if prompt_of(body) == "b" else completion(prompt_of(body))

    with ChatServer(reply) as server:
        results = ServerCaptioner(server.url, "tiny").answer([Request("a"), Request("b"), Request("c")])
    assert (results[0], results[2]) == (Answer("a"), Answer("c"))
    assert isinstance(results[1], BadClip)
    assert "too long" in str(results[1])


def test_wrong_key_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with ChatServer(lambda body, number: failure(401, "no key")) as server:
        captioner = ServerCaptioner(server.url, "tiny", key_variable="SOME_KEY", parallel=1)
        with pytest.raises(ConfigError, match="the environment variable SOME_KEY is not set; export the right key"):
            captioner.answer([Request("a")] * 50)
    assert len(server.requests) < 50


def test_cost_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    with ChatServer(lambda body, number: completion("A dog.", usage=usage)) as server:
        captioner = ServerCaptioner(server.url, "tiny", price=(0.5, 2))
        captioner.answer([Request("a"), Request("b")])
        _print_usage(captioner.client)
    assert capsys.readouterr().err == (f"{server.url}: 2 answers, 2,000 tokens of prompts, 400 of answers: $0.0018\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": " "}, "server: model is not usable; allowed: a name"),
        ({"parallel": 0}, "server: parallel is not usable; allowed: 1 to 1024"),
        ({"requests_per_minute": 0}, "requests_per_minute is not usable; allowed: more than 0, or None"),
        ({"price": (1,)}, "price is not usable; allowed: two numbers from 0, or None"),
        ({"timeout": 0}, "timeout is not usable"),
        ({"retries": -1}, "retries is not usable"),
        ({"jpeg_quality": 100}, "jpeg_quality is not usable"),
        ({"prompting": {"layout": "video"}}, "prompting.layout is 'video'; allowed: 'images' or 'grid'"),
        ({"body": {"stream": True}}, "body holds 'stream'"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerCaptioner(**{"url": "http://host/v1", "model": "tiny", **arguments})  # type: ignore[arg-type]
    assert expected in str(caught.value)


def test_key_with_letters_of_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "clé")
    with pytest.raises(ConfigError, match="the key in the environment variable SOME_KEY has letters that no key has"):
        ServerCaptioner("http://host/v1", "tiny", key_variable="SOME_KEY")
