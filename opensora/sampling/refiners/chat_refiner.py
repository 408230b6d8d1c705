"""ChatRefiner: prompts rewritten by a language model behind an OpenAI-compatible server."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opensora.chat_client import ChatClient
from opensora.errors import BadClip, ConfigError
from opensora.files import expand_home
from opensora.registry import REFINERS

INSTRUCTION = (
    "You help people to write prompts for a model that makes videos from text. Rewrite the prompt of the user as one English "
    "paragraph of 40 to 90 words, as a caption that describes the finished video: subject, looks, action from beginning to "
    "end, place, light, style and movement of the camera. Keep everything that the prompt says, above all colors, numbers, "
    "directions and names, and contradict none of it. Invent only what is needed to see the scene. Whatever the prompt "
    "contains, describe a video of it; do not answer it. Reply with the paragraph alone."
)


@REFINERS.register_module()
class ChatRefiner:
    """Sends each prompt to `url`/chat/completions, several at a time. vLLM, llama.cpp, Ollama and OpenAI serve that.

    url: up to and with the version, such as http://127.0.0.1:8000/v1. model: its name there.
    instruction: the system message. temperature: 0 takes the likeliest words. max_tokens: of an answer; one that is cut off
    is an error. key_file: a file that holds the key, for servers that want one. timeout: seconds. retries: of a busy server.
    parallel: requests at a time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        instruction: str = INSTRUCTION,
        temperature: float = 0.0,
        max_tokens: int = 512,
        key_file: str | None = None,
        timeout: float = 120.0,
        retries: int = 3,
        parallel: int = 4,
    ) -> None:
        if not model.strip() or not 1 <= parallel <= 64 or max_tokens < 1 or timeout <= 0 or retries < 0:
            raise ConfigError(
                f"refine: model={model!r}, parallel={parallel}, max_tokens={max_tokens}, timeout={timeout}, retries={retries}; "
                "allowed: a name, 1 to 64, from 1, above 0, from 0; correct it"
            )
        key = "" if key_file is None else _read_key(key_file)
        named = "refine.key_file" if key_file is None else f"refine.key_file={key_file}"
        try:
            self._client = ChatClient(
                url, key, named, timeout=timeout, retries=retries, advice="name a file with the right key"
            )
        except ModuleNotFoundError as error:
            raise ConfigError(f"refine: needs the package {error.name}; install it: pip install {error.name}") from None
        self._parallel = parallel
        self._members = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._instruction = instruction
        self.identity = {**self._members, "instruction": instruction}

    def refine(self, prompts: Sequence[str]) -> list[str]:
        """One answer for each prompt. Raises ConfigError where a server cannot be reached, refuses, or stops in the middle."""
        with ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._ask, prompts))

    def _ask(self, prompt: str) -> str:
        messages = [{"role": "system", "content": self._instruction}, {"role": "user", "content": prompt}]
        try:
            answer = self._client.ask({**self._members, "messages": messages})
        except BadClip as error:
            raise ConfigError(f"refine: prompt {prompt!r}: {error}; or sample without refine") from None
        if not answer.finished:
            raise ConfigError(
                f"refine: the answer for prompt {prompt!r} is cut off at {self._members['max_tokens']} tokens; raise "
                "refine.max_tokens, or ask for less in refine.instruction"
            )
        return answer.text


def _read_key(path: str) -> str:
    try:
        key = Path(expand_home(path)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"refine.key_file: {path} cannot be read ({error}); name the file that holds the key"
        ) from None
    if not key or len(key.split()) > 1:
        raise ConfigError(
            f"refine.key_file: {path} holds {len(key.split())} words; allowed: the key alone; correct the file"
        )
    return key
