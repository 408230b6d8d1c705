"""The list of SampleRequest of a run, from prompts of flags, a text file or a table.

A text file holds one prompt per line; blank lines are skipped. A `.csv`, `.tsv` or `.parquet` table needs the column `text`
and may hold `negative_prompt`, `seed`, `num_frames`, `height`, `width`, `resolution`, `aspect_ratio`, `fps`, `loop`,
`reference_path` and `mask_strategy`, or the plain choices of conditions.py; files are relative to the table, and an empty cell
takes the run's value. A prompt may end in JSON, see prompt_syntax.py.
Whatever is wrong is a ConfigError that names the file and the line, raised before any weight is read.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opensora.datasets.csv_rows import encoding_of
from opensora.datasets.missing_values import is_blank, is_missing
from opensora.datasets.row_blocks import misspelled
from opensora.datasets.table import read_table
from opensora.datasets.table_writer import is_parquet
from opensora.errors import ConfigError, DataError
from opensora.files import expand_home
from opensora.log import logger
from opensora.sampling.prompt_syntax import last_loop, map_loops, split_json, words_of
from opensora.sampling.reference_frames import ReferenceKeys, resolve, split_paths
from opensora.types import SampleRequest

FILES = ("first_frame", "last_frame", "extend", "edit")
CHOICES = (*FILES, "connect", "backward", "strength", "keep")  # of conditions.py
COLUMNS = (
    "text", "negative_prompt", "seed", "num_frames", "height", "width", "fps", "reference_path", "mask_strategy", "resolution",
    "aspect_ratio", "loop", *CHOICES,
)  # fmt: skip
TEXTS = ("text", "negative_prompt", "reference_path", "mask_strategy", "resolution", "aspect_ratio")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
NOT_READ = (".json", ".jsonl", ".xls", ".xlsx", ".ods")  # tables that would pass for lines of text
EXACT = 2**53  # a float above it may stand for another whole number
SLOWEST, FASTEST = 0.1, 240  # frames per second a video file can say
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LONGEST = 10_000  # frames of one clip; longer videos are made in loops


@dataclass(frozen=True)
class Prompt:
    """One prompt and what its own row says about the video; None takes the run's value."""

    text: str
    where: str  # flag, or file and line, for messages
    negative_prompt: str | None = None
    seed: int | None = None
    num_frames: int | str | None = None  # or seconds, such as "4s"
    height: int | None = None  # pixels
    width: int | None = None  # pixels
    fps: float | None = None
    resolution: str | None = None  # with aspect_ratio in place of height and width, see size_words.py
    aspect_ratio: str | None = None
    reference_path: str | None = None  # files, joined by ";"
    mask_strategy: str | None = None
    loop: int | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)  # those of CHOICES, with values of SampleRun


# The run's reference_path and mask_strategy for a prompt, and the frames of its clip -> both, by its own choices as well.
ReferencesOf = Callable[[Prompt, str, str, int], tuple[str, str]]


def collect_requests(
    prompts: Sequence[str] | None,
    prompt_path: str | None,
    *,
    num_frames: int,
    image_size: Sequence[int],
    fps: float,
    seed: int,
    frame_interval: int = 1,
    save_fps: float | None = None,
    save_format: str = "mp4",
    watermark: str = "",
    negative_prompt: str = "",
    num_sample: int = 1,
    reference_keys: ReferenceKeys = ReferenceKeys(),
    references_of: ReferencesOf | None = None,
    size_of: Callable[[Prompt], tuple[int, int, int]] | None = None,
    refine: Callable[[Sequence[str]], Mapping[str, str]] | None = None,
    change: Callable[[str], str] = lambda text: text,
) -> list[SampleRequest]:
    """All requests of a run: prompts given directly, then those of the file, `num_sample` videos each.

    image_size: (height, width) in pixels. fps: of a video of which every `frame_interval`-th frame is made. save_fps: of
    the file, None = as made. save_format, watermark: see SampleRequest.
    `index` is the prompt's place in the list, `repeat` the video of that prompt.
    reference_keys: the run's keys for reference frames. references_of: turns plain choices into them; None: such are refused.
    size_of: frames, height and width of a prompt with size words of its own; None: such words are refused. refine: rewrites
    the words of all prompts and loops. change: applied to them then.
    Raises ConfigError when there is no prompt or a value cannot be used.
    """
    parsed = [direct_prompt(text, f"prompt {place}") for place, text in enumerate(prompts or [], start=1)]
    if prompt_path is not None:
        parsed += read_prompts(prompt_path)
    if not parsed:
        raise ConfigError(
            "sampling: no prompt was given; at least one is needed; pass --prompt 'what to show' or prompt_path=FILE"
        )
    if num_sample < 1:
        raise ConfigError(f"num_sample: {num_sample} videos per prompt; it is 1 or more")
    if len(image_size) != 2:
        raise ConfigError(f"image_size: {tuple(image_size)} has {len(image_size)} numbers; it is (height, width)")
    sizes = dict(num_frames=num_frames, height=image_size[0], width=image_size[1], fps=fps, seed=seed)
    if save_fps is not None and not SLOWEST <= save_fps <= FASTEST:
        raise ConfigError(f"save_fps: {save_fps}; it is {SLOWEST} to {FASTEST} frames per second")
    refined = {} if refine is None else refine([words for prompt in parsed for words in words_of(prompt.text)])
    requests = []
    for index, (prompt, (path, strategy)) in enumerate(
        zip(parsed, reference_keys.of_prompts(len(parsed)), strict=True)
    ):
        if prompt.resolution or prompt.aspect_ratio or isinstance(prompt.num_frames, str):
            prompt = _in_numbers(prompt, size_of)
        keys = reference_keys if prompt.loop is None else replace(reference_keys, loop=prompt.loop)
        base = _request(prompt, index, negative_prompt, sizes, frame_interval)
        words = _reference_words(prompt, path, strategy, base.num_frames, references_of)
        conditioning = keys.for_prompt(*words, prompt.where)
        if last_loop(prompt.text) >= keys.loop:
            raise ConfigError(
                f"{prompt.where}: {prompt.text!r} has words for a loop that is not made; loop is {keys.loop}, loops are "
                "counted from 0; set loop or correct the prompt"
            )
        original, text = prompt.text, map_loops(prompt.text, lambda words: refined.get(words, words))
        requests += [
            replace(
                base,
                prompt=map_loops(text, change),
                repeat=repeat,
                conditioning=conditioning,
                save_fps=save_fps,
                save_format=save_format,
                watermark=watermark,
                original_prompt=original if refine is not None else "",
            )
            for repeat in range(num_sample)
        ]
    return requests


def _reference_words(
    prompt: Prompt, path: str, strategy: str, num_frames: int, references_of: ReferencesOf | None
) -> tuple[str, str]:
    """reference_path and mask_strategy of a prompt, from those of the run and all that the prompt says of its own."""
    if references_of is not None:
        return references_of(prompt, path, strategy, num_frames)
    if prompt.choices:
        raise ConfigError(f"{prompt.where}: {', '.join(prompt.choices)}: not taken here; give reference_path instead")
    own = prompt.reference_path, prompt.mask_strategy
    return path if own[0] is None else own[0], strategy if own[1] is None else own[1]


def _in_numbers(prompt: Prompt, size_of: Callable[[Prompt], tuple[int, int, int]] | None) -> Prompt:
    """The prompt with numbers for its size words; ConfigError for words that mean nothing."""
    if size_of is None or ((prompt.resolution or prompt.aspect_ratio) and (prompt.height or prompt.width)):
        raise ConfigError(
            f"{prompt.where}: a size in words next to height and width, or where only numbers are taken; keep one of them"
        )
    try:
        num_frames, height, width = size_of(prompt)
    except ConfigError as error:
        raise ConfigError(f"{prompt.where}: {str(error).removeprefix('config: ')}") from None
    if not (prompt.resolution or prompt.aspect_ratio):
        return replace(prompt, num_frames=num_frames)
    return replace(prompt, num_frames=num_frames, height=height, width=width)


def direct_prompt(text: str, where: str) -> Prompt:
    """Check one prompt; ConfigError when it is blank or holds bytes that were not UTF-8."""
    if is_blank(text):
        raise ConfigError(f"{where}: the prompt is empty; write what the video should show, or remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the shell passed other bytes; Python carries them as lone surrogates
        raise ConfigError(
            f"{where}: {text!r} is not UTF-8; prompts are UTF-8 text; check the terminal's locale"
        ) from None
    parts = split_json(text.strip(), where)
    if not parts.text:
        raise ConfigError(f"{where}: the prompt is empty but for its JSON; write what the video should show")
    return Prompt(
        parts.text, where, reference_path=parts.reference_path or None, mask_strategy=parts.mask_strategy or None
    )


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a text file, CSV or Parquet table, in file order; ConfigError names the file and the line."""
    path = Path(expand_home(path))
    if path.suffix.lower() in NOT_READ:
        raise ConfigError(
            f"prompt_path: {path} is a {path.suffix} file; allowed: text with one prompt per line, or a table with the column "
            f"'text' ({', '.join(TABLES)}); convert it"
        )
    try:
        with path.open("rb"):  # before other errors: the file is there, and no folder
            pass
        if path.suffix.lower() in TABLES:
            prompts = [_row_prompt(row, where, path.parent) for row, where in _table_rows(path)]
        else:
            lines = enumerate(re.split("\r\n|\r|\n", _read_text(path)), start=1)  # as editors count lines
            prompts = [direct_prompt(line, f"{path}, line {number}") for number, line in lines if not is_blank(line)]
    except OSError as error:
        raise ConfigError(
            f"prompt_path: {path} cannot be read ({error.strerror}); give a text, CSV or Parquet file"
        ) from None
    except DataError as error:
        raise ConfigError(f"prompt_path: {error}") from None
    if not prompts:
        raise ConfigError(f"{path}: no prompt in it; write one per line, or a table with the column 'text'")
    return prompts


def _read_text(path: Path) -> str:
    data, encoding = path.read_bytes(), encoding_of(str(path))
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise ConfigError(f"{path}: cannot be decoded ({error}); prompts are UTF-8 text; save it again") from None
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; prompts are UTF-8 text; "
            f"convert the file, for example: iconv -f latin1 -t utf-8"
        ) from None


def _table_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The cells of each row, and its place for messages."""
    table = read_table(str(path))
    _check_columns(path, table.columns)
    for note in misspelled(str(path), table.columns, COLUMNS):
        logger().warning("prompt_path: %s", note)
    for index, (row, line) in enumerate(zip(table.rows, table.lines, strict=True)):
        where = f"{path}, {'row' if is_parquet(str(path)) else 'line'} {line}"
        if index in table.errors:
            raise ConfigError(f"{where}: {table.errors[index]}")
        yield row, where


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if "text" not in columns:
        names = ", ".join(columns) or "none"
        raise ConfigError(f"{path}: columns are {names}; the column 'text' is needed; rename the one with the prompts")


def _row_prompt(row: Mapping[str, Any], where: str, folder: Path) -> Prompt:
    cells = {name: row[name] for name in COLUMNS if not is_missing(row.get(name))}
    if "text" not in cells and not is_blank(str(row.get("text") or "")):
        raise ConfigError(
            f"{where}: the prompt is {row['text']!r}, which programs write for an empty cell; write what the video should "
            "show, or remove the row"
        )
    texts = {name: _text(name, cells.pop(name), where) for name in TEXTS if name in cells}
    prompt = direct_prompt(texts.get("text", ""), where)
    negative, reference_path, mask_strategy, *_ = map(texts.get, TEXTS[1:])
    choices = {name: _choice(name, cells.pop(name), where, folder) for name in CHOICES if name in cells}
    own: dict[str, Any] = {name: _number(name, value, where) for name, value in cells.items()}
    own |= {name: texts[name] for name in ("resolution", "aspect_ratio") if name in texts}
    if prompt.reference_path is None and reference_path is not None:
        own["reference_path"] = resolve(reference_path, folder)
    if prompt.mask_strategy is None and mask_strategy is not None:
        own["mask_strategy"] = mask_strategy
    if own.get("loop", 1) < 1:
        raise ConfigError(f"{where}: loop is {own['loop']}; it is 1 or more clips, or empty for the run's own")
    return replace(prompt, negative_prompt=negative, choices=choices, **own)


def _choice(name: str, cell: object, where: str, folder: Path) -> Any:
    """The cell of a plain choice as the value of its key; files are relative to `folder`."""
    if name == "strength":
        try:
            strength = float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            strength = math.nan
        if isinstance(cell, bool) or not 0 < strength <= 1:
            raise ConfigError(
                f"{where}: strength is {cell!r}; it is a number above 0 and up to 1, or empty for the run's own"
            )
        return strength
    text = _text(name, cell, where).strip()
    if name == "backward":
        if text.lower() not in BOOLEANS:
            raise ConfigError(f"{where}: backward is {cell!r}; it is true or false, or empty for the run's own")
        return BOOLEANS[text.lower()]
    if name == "connect":
        return split_paths(text, folder)
    return str(folder / expand_home(text)) if name in FILES else text


def _text(name: str, cell: object, where: str) -> str:
    """The cell as text; a whole number in a column of floats is written without its zeros."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, str | int | float):
        return str(cell)
    raise ConfigError(f"{where}: {name} is {cell!r}; it is text; write the table again")


def _number(name: str, value: str | float, where: str) -> float | int | str:
    if name == "num_frames" and isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*[sx]\w*\s*", value.lower()):
        return value  # seconds
    try:
        if isinstance(value, bool) or (isinstance(value, float) and abs(value) > EXACT):
            raise ValueError
        if name == "fps":
            return float(value)
        if str(value).lstrip("+-").isdigit():
            return int(value)  # not through float(), which large seeds would not survive
        if float(value).is_integer():  # pandas writes whole numbers as 16.0 in columns with empty cells
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass  # the error below names the value
    kind = "a number" if name == "fps" else "a whole number"
    raise ConfigError(f"{where}: {name} is {value!r}; it is {kind}, or empty for the run's own")


def _request(
    prompt: Prompt,
    index: int,
    negative_prompt: str,
    defaults: Mapping[str, float | int],
    frame_interval: int,
) -> SampleRequest:
    own = {name: getattr(prompt, name) for name in defaults}
    size: dict[str, Any] = {name: defaults[name] if value is None else value for name, value in own.items()}
    for name in ("num_frames", "height", "width", "fps"):
        if not (math.isfinite(size[name]) and size[name] > 0):
            raise ConfigError(f"{prompt.where}: {name} is {size[name]}; it is more than 0")
    if size["num_frames"] > LONGEST:
        raise ConfigError(
            f"{prompt.where}: num_frames is {size['num_frames']}; it is 1 to {LONGEST} frames in one clip; set fewer, and "
            "loop=N for a video of N such clips"
        )
    size["fps"] = float(size["fps"]) / frame_interval  # 8 and 8.0 are one request
    if not SLOWEST <= size["fps"] <= FASTEST:
        raise ConfigError(f"{prompt.where}: fps is {size['fps']}; it is {SLOWEST} to {FASTEST} frames per second")
    negative = negative_prompt if prompt.negative_prompt is None else prompt.negative_prompt
    return SampleRequest(prompt.text, negative.strip(), index, repeat=0, **size)
