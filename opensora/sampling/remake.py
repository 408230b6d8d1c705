"""The command that makes one video of a run again: the run's config, and all that its request holds, in numbers."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from opensora.schema import SampleRun

if TYPE_CHECKING:  # the import takes seconds
    from opensora.sampling.metadata import GenerationSettings
    from opensora.types import SampleRequest

# Keys of a run whose values a request has in its own terms.
OF_REQUEST = (
    "prompt", "prompt_path", "negative_prompt", "num_sample", "num_frames", "image_size", "resolution", "aspect_ratio",
    "fps", "frame_interval", "save_fps", "save_format", "watermark", "grid", "aes", "flow", "camera_motion",
    "reference_path", "mask_strategy", "first_frame", "last_frame", "extend", "backward", "connect", "edit", "strength",
    "keep", "align", "loop", "condition_frame_length", "condition_frame_edit", "seed", "save_dir",
    "scheduler.num_sampling_steps", "scheduler.cfg_scale",
)  # fmt: skip


def run_command(config: str, overrides: Sequence[str], written: Collection[str]) -> list[str]:
    """The words of the command without what a request holds. written: keys that the config file sets."""
    kept = [override for override in overrides if override.partition("=")[0].split(".")[0] != "refine"]
    kept = [override for override in kept if override.partition("=")[0] not in OF_REQUEST]
    defaults = {field.name: field.default for field in dataclasses.fields(SampleRun)}
    resets = ["refine=None"] if "refine" in written else []  # a file holds the words that were sampled
    resets += [f"{key}={defaults[key]}" for key in OF_REQUEST if key in written and key in _RESET]
    return ["opensora", "sample", config, *kept, *resets]


# Of these a config's value would get in the way, for the request says the same in another way.
_RESET = (
    "prompt_path", "resolution", "aspect_ratio", "frame_interval", "first_frame", "last_frame", "extend", "backward",
    "connect", "edit", "strength", "keep", "num_sample", "grid",
)  # fmt: skip


def command_of(run: Sequence[str], request: "SampleRequest", settings: "GenerationSettings") -> list[str]:
    """The words of the command for one video of the run `run`; `shlex.join` makes a line of them."""
    values: dict[str, Any] = {
        "num_frames": request.num_frames,
        "image_size": (request.height, request.width),
        "fps": request.fps,
        "scheduler.num_sampling_steps": settings.steps,
        "scheduler.cfg_scale": settings.guidance_scale,
    }
    if request.negative_prompt:
        values["negative_prompt"] = repr(request.negative_prompt)
    if request.save_fps is not None:
        values["save_fps"] = request.save_fps
    if request.save_format != "mp4":
        values["save_format"] = request.save_format
    if request.watermark:
        values["watermark"] = repr(request.watermark)
    if request.repeat:
        values["num_sample"] = request.repeat + 1  # the last of them
    if request.conditioning is not None:
        conditioning = dataclasses.asdict(request.conditioning)
        values["reference_path"] = repr(";".join(conditioning.pop("references")))
        values["mask_strategy"] = repr(conditioning.pop("mask_strategy"))
        del conditioning["contents"]
        values |= {name: value for name, value in conditioning.items() if value is not None}
    words = [
        f"{key}={re.sub(r', ', ',', str(value)) if key == 'image_size' else value}" for key, value in values.items()
    ]
    return [*run, f"--prompt={request.prompt}", f"--seed={request.seed}", *words]
