"""`server`: captions by any OpenAI-compatible server, such as vLLM, SGLang, Ollama, llama.cpp or a company's."""

import base64
import io
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.util import Finalize
from typing import Any

from opensora.chat_client import ChatClient
from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from opensora.rate_limit import RateLimit
from opensora.registry import CAPTIONERS
from tools.caption.chat_captioner import ChatCaptioner, Request, Result

_AT_END: list[Finalize] = []  # of the captioners of this process; each prints its cost once
_RESERVED = ("messages", "model", "stream")


@CAPTIONERS.register_module(name="server")
class ServerCaptioner(ChatCaptioner):
    """Sends frames as JPEG inside the request, some requests at a time.

    url: up to and with the version, such as http://127.0.0.1:8000/v1.
    model: the model's name at the server.
    prompting: see tools.caption.prompting.Prompting; layout "video" does not exist in this interface.
    key_variable: environment variable that holds the key; the key itself is written nowhere.
    parallel: requests at one time, of each worker.
    requests_per_minute: of each worker; None = no limit.
    max_tokens: of an answer. temperature: 0 = the likeliest words; None leaves it to the server.
    body: further members of the request, such as dict(seed=1) or dict(max_completion_tokens=300, max_tokens=None); None
        removes one.
    price: dollars per million tokens of prompts and of answers, for the cost that is printed; None = not printed.
    timeout: seconds to wait for the server. retries: further tries after errors that may go away.
    jpeg_quality: 1 to 95.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompting: Mapping[str, Any] | None = None,
        key_variable: str = "OPENAI_API_KEY",
        parallel: int = 8,
        requests_per_minute: float | int | None = None,
        max_tokens: int = 300,
        temperature: float | int | None = 0.0,
        body: Mapping[str, Any] | None = None,
        price: Sequence[float | int] | None = None,
        timeout: float | int = 120.0,
        retries: int = 5,
        jpeg_quality: int = 85,
    ) -> None:
        super().__init__(prompting)
        if self.prompting.layout == "video":
            raise ConfigError("server: prompting.layout is 'video'; allowed: 'images' or 'grid'; change it")
        self._check(model, parallel, requests_per_minute, price, timeout, retries, jpeg_quality)
        reserved = [key for key in body or {} if key in _RESERVED]
        if reserved:
            raise ConfigError(f"server: body holds {reserved[0]!r}, which is written by the tool; remove it")
        members = {"model": model, "max_tokens": max_tokens, "temperature": temperature, **(body or {})}
        self._members = {name: value for name, value in members.items() if value is not None}
        self._parallel, self._quality = parallel, jpeg_quality
        self.label = f"server:{model}"
        dollars = (float(price[0]), float(price[1])) if price is not None else None
        self.client = ChatClient(
            url,
            os.environ.get(key_variable, "").strip() if key_variable else "",
            f"the environment variable {key_variable}",
            again="try again later with --resume",
            timeout=timeout,
            retries=retries,
            limit=RateLimit(requests_per_minute),
            price=dollars,
        )
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="caption-server")
        # At the end of the command, or of the process where it is a worker of a command.
        _AT_END.append(Finalize(self, _print_usage, (self.client,), exitpriority=0))

    @staticmethod
    def _check(
        model: str,
        parallel: int,
        per_minute: float | None,
        price: Sequence[float] | None,
        timeout: float,
        retries: int,
        quality: int,
    ) -> None:
        limits = [
            ("model", bool(model.strip()), "a name"),
            ("parallel", 1 <= parallel <= 1024, "1 to 1024"),
            ("requests_per_minute", per_minute is None or per_minute > 0, "more than 0, or None"),
            ("price", price is None or (len(price) == 2 and min(price) >= 0), "two numbers from 0, or None"),
            ("timeout", timeout > 0, "more than 0 seconds"),
            ("retries", retries >= 0, "from 0"),
            ("jpeg_quality", 1 <= quality <= 95, "1 to 95"),
        ]
        for name, good, allowed in limits:
            if not good:
                raise ConfigError(f"server: {name} is not usable; allowed: {allowed}; correct it")

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        futures = [self._pool.submit(self._one, request) for request in requests]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _one(self, request: Request) -> Result:
        try:
            return self.client.ask({**self._members, "messages": messages(request, self._quality)})
        except BadClip as error:
            return error


def messages(request: Request, quality: int) -> list[dict[str, Any]]:
    """The request in the words of the chat interface: pictures first, then the prompt."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg(picture, quality)}"}}
        for picture in (request.pictures if request.pictures is not None else ())
    ]
    content.append({"type": "text", "text": request.prompt})
    system = [{"role": "system", "content": request.system}] if request.system else []
    plain = request.prompt if len(content) == 1 else content  # some servers of language models take plain text only
    return [*system, {"role": "user", "content": plain}]


def jpeg(picture: Frames, quality: int) -> str:
    """[H, W, 3] as a JPEG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def print_cost() -> None:
    """Print the tokens and cost of the captioners of this process, which end with it."""
    while _AT_END:
        _AT_END.pop()()


def _print_usage(client: ChatClient) -> None:
    if client.usage.requests:
        print(f"{client.url}: {client.usage}", file=sys.stderr)
    client.close()
