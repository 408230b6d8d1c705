"""SampleService: the values of a form to a video, through the very config that `opensora sample` reads."""

import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.config import load
from opensora.errors import ConfigError
from opensora.files import write_errors_as
from opensora.registry import SCHEDULERS, build
from opensora.sampling.build import SamplePlan, SamplerBuilder, plan_sampling
from opensora.sampling.clean_estimate import Preview
from opensora.sampling.generate import check_size, generate
from opensora.sampling.metadata import is_done, output_path
from opensora.sampling.prompt_syntax import split_json
from opensora.sampling.reference_frames import overlap_frames, with_condition_frame_length
from opensora.sampling.remake import run_command
from opensora.sampling.video_writer import WriteError, prepare_folder, rgb_frames, write_sample
from opensora.schema import Precision, SampleRun
from opensora.training.checkpoint import has_checkpoint
from opensora.web.job_queue import Report

# Keys of a sampling config that a form sets. A path among them is that of a file which the visitor sent.
FORM_KEYS = (
    "prompt", "negative_prompt", "resolution", "aspect_ratio", "num_frames", "fps", "seed", "scheduler.num_sampling_steps",
    "scheduler.cfg_scale", "load", "first_frame", "last_frame", "extend", "backward", "edit", "strength",
)  # fmt: skip
FORMATS = ("mp4", "webm", "av1", "gif")  # values of save_format that browsers show
HISTORY = ".history.jsonl"
_PREVIEW_PIXELS = 480  # of its longer side
_MOST_RUNS, _DEPTH = 50, 3  # run folders that are offered, and folders below the one that is searched

Form = Mapping[str, Any]  # key of FORM_KEYS -> value; a key that is missing takes the config's


@dataclass(frozen=True)
class Made:
    """A finished video."""

    path: Path
    form: dict[str, Any]
    user: str
    seconds: float = 0.0  # that it took


class SampleService:
    """Holds the networks of the last video, so that the next one starts at once. One thread calls `sample`.

    config, overrides: of `opensora sample`. device, dtype: of the networks. runs: folders of trained models that a form may
    name as `load`. previews: looks into each video while it is made. Raises ConfigError for a config that is wrong.
    """

    def __init__(
        self,
        config: str,
        overrides: Sequence[str],
        device: torch.device,
        dtype: Precision,
        runs: Sequence[str] = (),
        previews: int = 5,
    ) -> None:
        self._previews = previews
        self.config, self.runs = config, runs
        self.run = load(config, overrides, SampleRun).run  # what a form does not say
        if self.run.save_format not in FORMATS:
            raise ConfigError(
                f"{config}: key 'save_format': found {self.run.save_format!r}, which browsers do not show; allowed on a page: "
                f"{', '.join(FORMATS)}; change it"
            )
        self._planning = threading.Lock()  # requests come in many threads, and a config is a program
        self._overrides, self._dtype = list(overrides), dtype
        self._builder = SamplerBuilder(device)
        scheduler = build(SCHEDULERS, self.plan({"prompt": "any"}).parts["scheduler"])
        self.steps, self.guidance_scale = int(scheduler.num_sampling_steps), float(scheduler.cfg_scale)

    def plan(self, form: Form) -> SamplePlan:
        """Check a form and read what it names. Raises ConfigError."""
        return self._plan(form)[0]

    def _plan(self, form: Form) -> tuple[SamplePlan, list[str]]:
        """The plan, and the command that makes the run's videos, without what a request holds."""
        unknown = sorted(form.keys() - set(FORM_KEYS))
        if unknown:
            raise ConfigError(f"form: found {', '.join(unknown)}; allowed: {', '.join(FORM_KEYS)}")
        text = str(form.get("prompt", ""))
        parts = split_json(text.strip(), "prompt")
        if parts.reference_path or parts.mask_strategy:  # would name a file of the server
            raise ConfigError("prompt: JSON with paths is not read on this page; send the pictures as files")
        if "load" in form and form["load"] not in self.runs:
            raise ConfigError(f"model: {form['load']!r} is not in the list of this page; choose one of them")
        values = {**form, "prompt": [text]}
        words = [*self._overrides, *(f"{key}={value!r}" for key, value in values.items())]
        with self._planning:
            loaded = load(self.config, words, SampleRun)
            with loaded.naming_origins():
                plan = plan_sampling(replace(loaded.run, dtype=self._dtype), self.config)
        return plan, run_command(self.config, words, loaded.written)

    def sample(self, form: Form, report: Report) -> Path:
        """Make the form's video below the config's save_dir; one that is there already is returned at once.

        Raises ConfigError for values that do not fit, WriteError when the disk refuses, and what `report` raises.
        """
        plan, command = self._plan(form)
        sampler, settings = self._builder.build(plan)
        request = with_condition_frame_length(plan.requests[0], sampler.codec.vae)
        check_size((request.num_frames, request.height, request.width), sampler)
        overlap_frames(request, sampler.codec.vae)
        folder = prepare_folder(plan.run.save_dir)
        path = output_path(folder, request)
        if is_done(path, request, settings):
            return path
        preview = None
        if self._previews:
            every = max(1, round(sampler.scheduler.num_sampling_steps / (self._previews + 1)))
            preview = Preview(every, lambda video_BCTHW: report.show(_middle_frame(video_BCTHW[0])))
        [video_CTHW] = generate([request], sampler, settings.guidance_scale, report.step, preview)
        return write_sample(video_CTHW, request, settings, folder, command)

    def remember(self, made: Made) -> None:
        """Append a video to the history of its folder. Raises WriteError."""
        line = {"file": made.path.name, "form": made.form, "user": made.user, "seconds": round(made.seconds, 2)}
        place = made.path.with_name(HISTORY)
        with write_errors_as(WriteError, place, "free some space"), open(place, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({**line, "time": time.time()}))

    def history(self, user: str, most: int = 24) -> list[Made]:
        """A user's videos that are still there, the latest first, each once."""
        folder = Path(self.run.save_dir)
        try:
            lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        made_before: dict[str, Made] = {}
        for line in reversed(lines):
            made = _made(line, folder)
            if made is not None and made.user == user and made.path.is_file():
                made_before.setdefault(made.path.name, made)
            if len(made_before) == most:
                break
        return list(made_before.values())


def _middle_frame(video_CTHW: Tensor) -> bytes:
    """The middle frame as JPEG."""
    from PIL import Image

    middle = video_CTHW.shape[1] // 2
    image = Image.fromarray(rgb_frames(video_CTHW[:, middle : middle + 1])[0])
    image.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _made(line: str, folder: Path) -> Made | None:
    """A line of the history; None for one that a kill cut off, and for a name that leads out of the folder."""
    try:
        entry = json.loads(line)
        name, form, user = entry["file"], dict(entry["form"]), str(entry["user"])
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(name, str) or Path(name).name != name:
        return None
    return Made(folder / name, form, user, float(entry.get("seconds") or 0.0))


def trained_runs(folder: str | Path) -> list[str]:
    """Run folders with a checkpoint below a folder, as paths."""
    root = Path(folder)
    depths = ("/".join(["*"] * depth) for depth in range(1, _DEPTH + 1))
    places = [place for depth in depths for place in sorted(root.glob(depth)) if place.is_dir()]
    return [str(place) for place in places if has_checkpoint(place)][:_MOST_RUNS]
