"""The interface of what rewrites prompts, and the memory of its answers.

Models are trained on long captions, and people write short prompts: Open-Sora 1.2 lets a language model fill them in.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from opensora.errors import ConfigError
from opensora.files import hash_text, write_errors_as, write_json
from opensora.log import logger
from opensora.parallel.rank_environment import rank_from_environment
from opensora.registry import REFINERS, build
from opensora.sampling.prompt_syntax import words_of

FOLDER = "refined-prompts"  # below save_dir
LONGEST = 4000  # characters of an answer


class Refiner(Protocol):
    """A component of REFINERS; its constructor takes the keys of the config."""

    identity: Mapping[str, Any]  # all that decides the answer besides the prompt

    def refine(self, prompts: Sequence[str]) -> list[str]:
        """Other words for each prompt, in order. Raises OpenSoraError where there are none: no prompt is kept as it is."""
        ...


def refine_on_main_rank(config: dict[str, Any], save_dir: Path, prompts: Sequence[str]) -> dict[str, str]:
    """prompt -> its other words; on further ranks nothing, for the main rank's requests are sent to them."""
    if rank_from_environment()[0] != 0:
        return {}
    return refine_prompts(build(REFINERS, config), save_dir / FOLDER, prompts)


def refine_prompts(refiner: Refiner, folder: Path, prompts: Sequence[str]) -> dict[str, str]:
    """prompt -> its other words. Answers are kept below `folder`, so that a run that is repeated samples the same words.

    Raises ConfigError for an answer that is empty, far too long, or in the syntax of loops.
    """
    answers: dict[str, str] = {}
    missing = []
    for prompt in dict.fromkeys(prompts):
        kept = _read(folder, refiner, prompt)
        if kept is None:
            missing.append(prompt)
        else:
            answers[prompt] = kept
    for prompt, answer in zip(missing, refiner.refine(missing) if missing else [], strict=True):
        words = clean(answer, prompt)
        with write_errors_as(ConfigError, folder, "choose another save_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            record = {"prompt": prompt, "refined": words, **refiner.identity}
            write_json(_file(folder, refiner, prompt), record)
        answers[prompt] = words
        logger().info("refine: %r became %r", prompt, words)
    return answers


def clean(answer: str, prompt: str) -> str:
    """The answer in one line, without quotation marks around it. Raises ConfigError."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in answer).split())
    if len(words) > 1 and words[0] == words[-1] == '"':
        words = words[1:-1].strip()
    fault = ""
    if not words:
        fault = "empty"
    elif len(words) > LONGEST:
        fault = f"of {len(words):,} characters"
    elif words_of(words) != [words]:
        fault = "in the syntax of loops"
    if fault:
        raise ConfigError(
            f"refine: the answer for prompt {prompt!r} is {fault}; allowed: one paragraph of up to {LONGEST:,} characters; "
            "change refine.instruction or the model, or sample without refine"
        )
    return words


def _file(folder: Path, refiner: Refiner, prompt: str) -> Path:
    return folder / f"{hash_text(json.dumps([prompt, refiner.identity], sort_keys=True), 8)}.json"


def _read(folder: Path, refiner: Refiner, prompt: str) -> str | None:
    """The answer that is kept; None for none, or for a damaged file."""
    try:
        words = json.loads(_file(folder, refiner, prompt).read_text(encoding="utf-8"))["refined"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return words if isinstance(words, str) and words else None
