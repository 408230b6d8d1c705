"""ChatClient: one request to an OpenAI-compatible server, repeated where that helps."""

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from opensora.errors import BadClip, ConfigError
from opensora.rate_limit import RateLimit

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # these may go away by themselves
_LONGEST_WAIT = 120.0  # seconds between two tries, also where the server says more
_SHOWN = 200  # characters of a server's own words in a message


@dataclass(frozen=True)
class Answer:
    """A text, as its writer gave it. finished: False if it stops where the writer ran out of tokens."""

    text: str
    finished: bool = True


@dataclass
class Usage:
    """Tokens that the server counted. price: dollars per million tokens of prompts and of answers; None = unknown."""

    price: tuple[float, float] | None = None
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    uncounted: int = 0  # answers without a count
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, usage: object) -> None:
        """Count one answer. usage: the member of that name of the server's answer."""
        counts = usage if isinstance(usage, dict) else {}
        prompt, answer = counts.get("prompt_tokens"), counts.get("completion_tokens")
        with self._lock:
            self.requests += 1
            if not isinstance(prompt, int) or not isinstance(answer, int):
                self.uncounted += 1
                return
            self.prompt_tokens += prompt
            self.answer_tokens += answer

    @property
    def dollars(self) -> float | None:
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.answer_tokens * self.price[1]) / 1e6

    def __str__(self) -> str:
        text = f"{self.requests:,} answers, {self.prompt_tokens:,} tokens of prompts, {self.answer_tokens:,} of answers"
        if self.uncounted:
            text += f", {self.uncounted:,} answers without a count"
        return text if self.dollars is None else f"{text}: ${self.dollars:.4f}"


class ChatClient:
    """Posts to `url`/chat/completions. Safe to use from several threads.

    url: up to and with the version, such as http://127.0.0.1:8000/v1.
    key: "" for none. key_from, advice: where it comes from and how to give the right one, for messages. again: what to do later.
    timeout: seconds without a byte from the server. retries: further tries of one request.
    Raises ConfigError where no request can succeed: a refused key, an unknown address or model.
    """

    def __init__(
        self,
        url: str,
        key: str,
        key_from: str,
        *,
        advice: str = "export the right key",
        again: str = "try again later",
        timeout: float = 120.0,
        retries: int = 5,
        limit: RateLimit | None = None,
        price: tuple[float, float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        self.url, self._key, self._key_from = _checked(url), key, key_from
        self._advice, self._again = advice, again
        self._retries, self._sleep = retries, sleep
        self._limit = limit or RateLimit(None)
        self.usage = Usage(price)
        self._has_answered = False
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        verify = not self.url.startswith("http:")  # without TLS, reading the system's certificates is time lost
        try:
            self._http = httpx.Client(
                headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None), verify=verify
            )
        except UnicodeEncodeError:
            raise ConfigError(f"server: the key in {key_from} has letters that no key has; copy it again") from None

    def close(self) -> None:
        self._http.close()

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """The answer to one request. Raises BadClip when there is none after all tries."""
        fault = ""
        for attempt in range(self._retries + 1):
            self._limit.wait()
            outcome = self._try(body)
            if isinstance(outcome, Answer):
                return outcome
            fault, wait = outcome
            if attempt < self._retries:
                self._pause(attempt, wait)
        raise BadClip(f"{self.url}: {fault}, after {self._retries + 1} tries; {self._again}")

    def _pause(self, attempt: int, wait: float | None) -> None:
        """Wait before the next try: for as long as the server said, else longer each time."""
        if wait is not None:
            self._limit.hold(min(wait, _LONGEST_WAIT))
            return
        # random: requests that failed at one moment do not all come back at one moment
        self._sleep(min(2.0**attempt, 30.0) * random.uniform(0.75, 1.25))

    def _try(self, body: Mapping[str, Any]) -> Answer | tuple[str, float | None]:
        """The answer, or why there is none yet and the seconds to wait that the server names."""
        import httpx

        try:
            response = self._http.post(f"{self.url}/chat/completions", json=body)
        except httpx.TimeoutException:
            return "no answer in time", None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError) and not self._has_answered:
                raise ConfigError(
                    f"server: {self.url} cannot be reached ({self._hidden(str(error))}); start the server or correct url"
                ) from None
            return f"the connection failed ({self._hidden(str(error)) or type(error).__name__})", None
        except httpx.InvalidURL as error:
            raise ConfigError(f"server: url {self.url!r}: {error}; correct it") from None
        if response.status_code in _AGAIN and not _is_out_of_money(response.text):
            fault = f"answered {response.status_code} ({self._words(response.text)})"
            return fault, retry_after(response.headers.get("retry-after"))
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.text)
        return self._answer(response.text)

    def _refusal(self, status: int, text: str) -> Exception:
        where, words = f"server: {self.url} answered {status}", self._words(text)
        if status in (401, 403):
            state = "is not set" if not self._key else "holds a key that the server refuses"
            return ConfigError(f"{where} ({words}); {self._key_from} {state}; {self._advice}")
        if status in (402, 429):
            return ConfigError(f"{where} ({words}); the account has no credit left; add some, then {self._again}")
        if status == 404:
            return ConfigError(
                f"{where} ({words}); the address or the model is unknown there; correct url (it ends in /v1) or model"
            )
        if 300 <= status < 400:
            return ConfigError(
                f"{where}, a redirection; the key would go elsewhere; write the address it leads to as url"
            )
        if status == 413:
            return BadClip(f"{where}: the pictures are too large; lower prompting.max_side or prompting.frames")
        return BadClip(f"{where} ({words}); the request is refused; change the prompt or the server's settings")

    def _answer(self, text: str) -> Answer | tuple[str, float | None]:
        try:
            value = json.loads(text)
            choice = value["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return (
                f"answered something that is no chat completion ({self._words(text)}); url ends in /v1 for most servers",
                None,
            )
        self._has_answered = True
        self.usage.add(value.get("usage"))
        if isinstance(content, list):  # in parts
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            raise BadClip(
                f"{self.url}: the server's filter held the answer back; use another model, or caption this clip by hand"
            )
        if not isinstance(content, str) or not content.strip():
            refusal = choice["message"].get("refusal") or f"finish_reason {reason!r}"
            raise BadClip(
                f"{self.url}: an empty answer ({self._words(str(refusal))}); raise max_tokens, or change the prompt"
            )
        return Answer(content, finished=reason != "length")

    def _words(self, text: str) -> str:
        """A server's own words, short and without the key."""
        try:
            value = json.loads(text)
            error = value.get("error", value)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            pass
        words = " ".join(self._hidden(text).split())
        return words[:_SHOWN] or "without a word"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def retry_after(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header names, by number or date; None where it names none."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now())
    except (TypeError, ValueError):
        return None


def _is_out_of_money(text: str) -> bool:
    return "insufficient_quota" in text  # OpenAI answers 429 then, and waiting does not help


def _checked(url: str) -> str:
    """The url without a slash at its end. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"server: url is {url!r}; allowed: http://HOST:PORT/v1 or https://HOST/v1; correct it")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "server: url holds a user, a password or a query; allowed: none, for a url is written into records; "
            "give the key apart from it"
        )
    return url.rstrip("/").removesuffix("/chat/completions")
