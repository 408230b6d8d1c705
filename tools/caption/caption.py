"""Write captions: one manifest row per clip in, the row with columns text and captioner out.

Run: python -m tools.caption.caption clips.csv captions.csv
     python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/qwen2_5_vl.py
     python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/server.py \
         --options 'url=http://127.0.0.1:8000/v1 model=Qwen/Qwen2.5-VL-7B-Instruct'

Without --captioner, `template` puts measured motion, camera, size and colors into words; column captioner says so.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Literal

from opensora.chat_client import Answer
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip, ConfigError
from tools.caption.caption_config import CaptionConfig, settings_of
from tools.caption.chat_captioner import Request
from tools.caption.clean_caption import clean_caption
from tools.caption.is_english import other_language
from tools.caption.motion_words import with_motion_words
from tools.caption.prompting import fill, quotable
from tools.caption.server import print_cost
from tools.runner import LeftOut, Row, run

BATCH = 16  # rows at a time
_LONGEST = 4000  # characters of a caption inside the prompt that refines it


class Caption:
    """The rows with text, and with captioner, the name of what wrote it.

    captioner: template, sidecar, or a config such as configs/caption/qwen2_5_vl.py
    options: settings on top of the config, as 'from_pretrained=/weights/qwen prompting.frames=4'
    clean: remove openers such as "The video shows", markdown, repetitions, a sentence that was cut off; leave refusals out
    language: en leaves out captions that are not English, as T5 and CLIP need it; any takes all
    motion_words: what columns cmotion and flow add: nothing, sentences, or the words of Open-Sora 1.2
    only_missing: keep the text of rows that have one
    keep_as: column for the text that a row had before
    settings: the config as JSON, which the command fills in, so that rows made with another config are made again
    """

    def __init__(
        self,
        *,
        captioner: str = "template",
        options: str = "",
        clean: bool = True,
        language: Literal["en", "any"] = "en",
        motion_words: Literal["none", "sentences", "open_sora"] = "none",
        only_missing: bool = False,
        keep_as: str | None = None,
        settings: str = "",
    ) -> None:
        if keep_as in ("path", "text", "captioner", ""):
            raise ConfigError(
                f"caption --keep-as: found {keep_as!r}; allowed: a column of its own; choose another name"
            )
        self._config = CaptionConfig.read(captioner, options, settings)
        self._captioner, self._refiner = self._config.build()
        self._clean, self._english_only, self._style = clean, language == "en", motion_words
        self._only_missing, self._keep_as = only_missing, keep_as
        self.label = self._captioner.label + (f"+{self._refiner.label}" if self._refiner is not None else "")

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        waiting = [n for n, row in enumerate(rows) if not self._only_missing or is_missing(row.get("text"))]
        texts = dict(zip(waiting, self._texts([rows[number] for number in waiting]), strict=True))
        results: list[Row | BadClip] = []
        for number, row in enumerate(rows):
            text = texts.get(number)
            if isinstance(text, BadClip):
                results.append(text)
            elif text is None:
                results.append({**row, "captioner": row.get("captioner")})
            else:
                results.append(self._row(row, text))
        return results

    def _texts(self, rows: Sequence[Row]) -> list[str | BadClip]:
        clean = self._clean and not self._captioner.is_clean
        answers = self._captioner.caption(rows)
        results = [self._finish(row, answer, clean) for row, answer in zip(rows, answers, strict=True)]
        if self._refiner is not None:
            usable = [number for number, text in enumerate(results) if isinstance(text, str)]
            prompts = [
                fill(self._config.refine_prompt, text=quotable(str(results[number]), _LONGEST)) for number in usable
            ]
            answers = self._refiner.answer([Request(prompt) for prompt in prompts]) if prompts else []
            for number, answer in zip(usable, answers, strict=True):
                results[number] = self._finish(rows[number], answer, self._clean)
        return results

    def _finish(self, row: Row, answer: Answer | BadClip, clean: bool) -> str | BadClip:
        """The caption after cleaning, or why it is not used."""
        if isinstance(answer, BadClip):
            return answer
        try:
            text = clean_caption(answer.text, answer.finished) if clean else answer.text.strip()
        except BadClip as error:
            return error
        if not text:
            return BadClip(f"{row['path']}: the caption is empty; use another model or prompt")
        language = other_language(text) if self._english_only else None
        if language is not None:
            return LeftOut(f"{row['path']}: the caption is in {language}: {text[:60]!r}; --language any takes it")
        return text

    def _row(self, row: Row, text: str) -> Row:
        kept = {name: cell for name, cell in row.items() if name not in ("path", "text", "captioner")}
        if self._keep_as is not None:
            kept[self._keep_as] = row.get("text")
        return {"path": row["path"], "text": with_motion_words(text, row, self._style), **kept, "captioner": self.label}


def with_settings(argv: Sequence[str]) -> list[str]:
    """The command line with the content of the config that --captioner names. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--captioner", default="")
    parser.add_argument("--settings", default="")
    options, _ = parser.parse_known_args(list(argv))
    settings = "" if options.settings else settings_of(options.captioner)
    return [*argv, f"--settings={settings}"] if settings else list(argv)


def main() -> None:
    """The command, with the words in sys.argv."""
    try:
        sys.argv[1:] = with_settings(sys.argv[1:])
        run(Caption, batch_size=BATCH)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        print_cost()


if __name__ == "__main__":
    main()
