"""CaptionConfig: the captioner of a command, from a config file or by its name in the registry."""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opensora.config import check_component, parse_override, read
from opensora.errors import ConfigError
from opensora.registry import CAPTIONERS, build, names
from tools.caption.captioner import Captioner
from tools.caption.chat_captioner import ChatCaptioner
from tools.caption.prompting import REFINE

_KEYS = ("captioner", "refine", "refine_prompt")


@dataclass(frozen=True)
class CaptionConfig:
    """captioner, refine: `dict(type=NAME, **arguments)`; refine writes the captions anew, None leaves them.

    refine_prompt: {text} is the caption.
    """

    captioner: dict[str, Any]
    refine: dict[str, Any] | None
    refine_prompt: str

    @staticmethod
    def read(source: str, options: str = "", settings: str = "") -> "CaptionConfig":
        """Check a config file, or a registered name. Raises ConfigError.

        options: `key=value key.part=value`, put on top. settings: of `settings_of`, in place of the file.
        """
        values: dict[str, Any] = {"captioner": {"type": source}}
        where: Callable[[str], str] = lambda key: "caption --captioner"  # noqa: E731
        if settings:
            values = _parsed(settings)
        elif source not in names(CAPTIONERS):
            if not source.lower().endswith((".py", ".json")) and not os.path.exists(source):
                raise ConfigError(
                    f"caption --captioner: found {source!r}; allowed: {', '.join(names(CAPTIONERS))}, or a config such as "
                    "configs/caption/qwen2_5_vl.py; correct it"
                )
            values, origins = read(source)
            values = _public(values)
            where = lambda key: origins.get(key.partition(".")[0], source)  # noqa: E731
        for key in values:
            if key not in _KEYS:
                raise ConfigError(
                    f"{where(key)}: key '{key}': unknown; allowed: {', '.join(_KEYS)}; rename or remove it"
                )
        if not isinstance(values.get("captioner"), dict):
            raise ConfigError(
                f"{source}: key 'captioner': missing; allowed: a dict with a type; add captioner = dict(...)"
            )
        _override(values, options)
        for key in ("captioner", "refine"):
            if values.get(key) is not None:
                check_component(CAPTIONERS, values[key], key, where)
        prompt = values.get("refine_prompt")
        if prompt is not None and (not isinstance(prompt, str) or "{text}" not in prompt):
            raise ConfigError(
                f"{where('refine_prompt')}: key 'refine_prompt': has no {{text}}; the caption goes there; add it"
            )
        refine = values.get("refine")
        if refine is None and prompt is not None:
            raise ConfigError(
                f"{where('refine_prompt')}: key 'refine_prompt': needs 'refine', the model for it; add refine = dict(...)"
            )
        return CaptionConfig(values["captioner"], refine, prompt or REFINE)

    def build(self) -> tuple[Captioner, ChatCaptioner | None]:
        """The captioner, and the model that refines; one and the same where their dicts are equal."""
        captioner: Captioner = build(CAPTIONERS, self.captioner)
        if self.refine is None:
            return captioner, None
        refiner = captioner if self.refine == self.captioner else build(CAPTIONERS, self.refine)
        if not isinstance(refiner, ChatCaptioner):
            raise ConfigError(
                f"caption: key 'refine.type': found {self.refine['type']!r}; allowed: a model that answers prompts, 'server' or "
                "'transformers'; change it"
            )
        return captioner, refiner


def settings_of(source: str) -> str:
    """The values of a config file as JSON; "" for a registered name. Raises ConfigError."""
    if source in names(CAPTIONERS) or not source.lower().endswith((".py", ".json")):
        return ""
    return json.dumps(_public(read(source)[0]), sort_keys=True)


def _public(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _parsed(settings: str) -> dict[str, Any]:
    try:
        values = json.loads(settings)
    except ValueError as error:
        raise ConfigError(
            f"caption --settings: not JSON ({error}); the command fills it in itself; remove it"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"caption --settings: found {settings!r}; allowed: a JSON object; remove it")
    return values


def _override(values: dict[str, Any], options: str) -> None:
    """Put `key=value` words on top of `captioner`; `refine.key=value` goes to `refine`. Raises ConfigError."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"caption --options: {error}; put quotes around values with blanks") from None
    for word in words:
        dotted, value = parse_override(word)
        *parents, last = dotted.split(".")
        if parents[:1] in (["captioner"], ["refine"]):
            here = values.setdefault(parents.pop(0), {})
        elif dotted in ("refine_prompt", "refine"):
            here = values
        else:
            here = values["captioner"]
        for part in parents:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
            if not isinstance(here, dict):
                raise ConfigError(f"caption --options: {dotted}: {part!r} is {here!r}, not a dict; set {part} itself")
        here[last] = value
