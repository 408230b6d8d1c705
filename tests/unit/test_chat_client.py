import json
import time
from email.utils import formatdate

import pytest

from opensora.chat_client import Answer, ChatClient, Usage, retry_after
from opensora.errors import BadClip, ConfigError
from opensora.rate_limit import RateLimit
from tests.support.chat_server import ChatServer, Reply, completion, failure

KEY = "sk-very-secret"
BODY = {"model": "tiny", "messages": []}


def client(server: ChatServer, waits: list[float], key: str = KEY, **more: object) -> ChatClient:
    """A client that waits by noting down how long."""
    limit = RateLimit(None, clock=lambda: sum(waits), sleep=waits.append)
    return ChatClient(server.url, key, "SOME_KEY", limit=limit, sleep=waits.append, **more)  # type: ignore[arg-type]


def replies(*script: Reply) -> ChatServer:
    """A server that gives these answers, and the last one from then on."""
    return ChatServer(lambda body, number: script[min(number, len(script) - 1)])


def test_answer_and_its_end() -> None:
    script = [
        completion("A dog runs."),
        completion("A dog ru", "length"),
        completion([{"type": "text", "text": "A dog."}]),
    ]  # type: ignore[arg-type]
    with replies(*script) as server:
        ask = client(server, []).ask
        assert [ask(BODY), ask(BODY), ask(BODY)] == [Answer("A dog runs."), Answer("A dog ru", False), Answer("A dog.")]
    assert server.keys == [f"Bearer {KEY}"] * 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_errors_that_pass_are_tried_again(status: int) -> None:
    waits: list[float] = []
    with replies(failure(status, "busy"), failure(status, "busy"), completion("A dog runs.")) as server:
        assert client(server, waits).ask(BODY) == Answer("A dog runs.")
    assert len(server.requests) == 3
    assert 0.75 <= waits[0] <= 1.25
    assert 1.5 <= waits[1] <= 2.5


def test_retry_after_holds_every_request() -> None:
    waits: list[float] = []
    with replies(failure(429, "slow down", {"Retry-After": "7"}), completion("A dog runs.")) as server:
        assert client(server, waits).ask(BODY) == Answer("A dog runs.")
        assert waits == [7.0]
    with replies(failure(429, "slow down", {"Retry-After": "86400"}), completion("A dog runs.")) as server:
        waits.clear()
        client(server, waits).ask(BODY)
        assert waits == [120.0]


def test_retry_after_may_be_a_date() -> None:
    now = 1_700_000_000.0
    assert retry_after(formatdate(now + 9, usegmt=True), now=lambda: now) == 9
    assert retry_after(formatdate(now - 9, usegmt=True), now=lambda: now) == 0
    assert [retry_after(text) for text in (None, "", "soon", "2.5")] == [None, None, None, 2.5]


def test_one_row_is_bad_when_all_tries_fail() -> None:
    with replies(failure(503, "overloaded")) as server:
        with pytest.raises(BadClip, match=r"answered 503 \(overloaded\), after 3 tries; try again later"):
            client(server, [], retries=2).ask(BODY)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            failure(401, f"Incorrect API key provided: {KEY}"),
            r"401 \(Incorrect API key provided: \*\*\*\).*SOME_KEY holds a key",
        ),
        (failure(403, "no"), "SOME_KEY holds a key that the server refuses; export the right key"),
        (
            failure(404, "model 'tiny' not there"),
            r"404 \(model 'tiny' not there\); the address or the model is unknown",
        ),
        (failure(429, "quota", code="insufficient_quota"), "no credit left"),
        ((307, {"Location": "http://127.0.0.1:1/v1"}, ""), "307, a redirection"),
    ],
)
def test_errors_of_every_request_end_the_run(reply: Reply, expected: str) -> None:
    with replies(reply) as server, pytest.raises(ConfigError, match=expected) as caught:
        client(server, []).ask(BODY)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_missing_key_is_named() -> None:
    with replies(failure(401, "no key")) as server, pytest.raises(ConfigError, match="SOME_KEY is not set"):
        client(server, [], key="").ask(BODY)
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (failure(400, "bad picture"), r"400 \(bad picture\)"),
        (failure(413, ""), "too large; lower prompting.max_side"),
        (completion(None, refusal="I will not."), r"an empty answer \(I will not.\)"),
        (completion("  ", "stop"), "an empty answer"),
        (completion("A d", "content_filter"), "filter held the answer back"),
    ],
)
def test_errors_of_one_request(reply: Reply, expected: str) -> None:
    with replies(reply) as server, pytest.raises(BadClip, match=expected):
        client(server, []).ask(BODY)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text", ["<html>Welcome</html>", "", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "7"]
)
def test_malformed_answers_are_tried_again(text: str) -> None:
    with replies((200, {}, text), completion("A dog runs.")) as server:
        assert client(server, []).ask(BODY) == Answer("A dog runs.")
    with replies((200, {}, text)) as server, pytest.raises(BadClip, match=r"no chat completion.*ends in /v1"):
        client(server, [], retries=1).ask(BODY)


def test_timeout() -> None:
    def late(body: dict[str, object], number: int) -> Reply:
        time.sleep(0.3)
        return completion("A dog runs.")

    with ChatServer(late) as server, pytest.raises(BadClip, match="no answer in time, after 1 tries"):
        client(server, [], timeout=0.05, retries=0).ask(BODY)


def test_server_that_is_not_there() -> None:
    with replies(completion("")) as server:
        pass
    with pytest.raises(ConfigError, match=r"127.0.0.1:\d+/v1 cannot be reached .*start the server or correct url"):
        client(server, []).ask(BODY)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:8000/v1", "allowed: http://HOST"),
        ("ftp://host/v1", "allowed: http://HOST"),
        ("http://user:secret@host/v1", "holds a user, a password or a query"),
        ("https://host/v1?key=secret", "holds a user, a password or a query"),
    ],
)
def test_urls_that_are_refused(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        ChatClient(url, "", "SOME_KEY")
    assert "secret" not in str(caught.value)


def test_cost() -> None:
    usage = Usage(price=(2.0, 10.0))
    usage.add({"prompt_tokens": 1_000_000, "completion_tokens": 50_000})
    usage.add({"prompt_tokens": 500_000, "completion_tokens": 0})
    usage.add(None)
    assert usage.dollars == 3.5
    assert str(usage) == (
        "3 answers, 1,500,000 tokens of prompts, 50,000 of answers, 1 answers without a count: $3.5000"
    )
    assert "$" not in str(Usage())


def test_rate_limit_spreads_requests() -> None:
    now = 0.0
    waits: list[float] = []
    limit = RateLimit(30, clock=lambda: now, sleep=waits.append)
    for _ in range(4):
        limit.wait()
    assert waits == [2.0, 4.0, 6.0]
    now = 100.0
    limit.wait()
    assert len(waits) == 3


def test_body_is_sent_as_it_is() -> None:
    with replies(completion("A dog runs.")) as server:
        client(server, []).ask({"model": "tiny", "messages": [], "seed": 3})
    assert json.dumps(server.requests[0], sort_keys=True) == '{"messages": [], "model": "tiny", "seed": 3}'
