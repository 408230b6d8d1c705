"""Captions and prompts on their way to the text encoder."""

import re

from opensora.datasets.video import VideoTextDataset
from opensora.errors import ConfigError
from opensora.registry import TEXT_ENCODERS, build
from opensora.sampling.prompt_check import check_cleaning, warn_of_cut_prompts
from opensora.sampling.requests import collect_requests
from opensora.training.caption_check import drop_empty_captions
from tests.e2e.odd_inputs.case import OddInput, Workbench

T5 = {"type": "t5", "from_pretrained": "google/t5-v1_1-small"}
NOTHING_LEFT = ["一只猫在草地上奔跑", "城市的夜晚", "IMG_1234.mp4", "@someone #123"]


def cleaned_captions(bench: Workbench) -> list[str]:
    """First line of the report on a manifest whose captions are empty after cleaning."""
    path = bench.folder / "cjk.csv"
    path.write_text("path,text\n" + "".join(f"{n}.mp4,{text}\n" for n, text in enumerate(NOTHING_LEFT)))
    clips = VideoTextDataset(str(path), num_frames=5, image_size=(16, 16))
    drop_empty_captions(clips, T5)
    return [line.removeprefix(f"{path}: ") for line in clips.report().lines() if ": " in line][:1]


def cleaned_prompts(bench: Workbench) -> list[bool]:
    """True for each prompt that is refused with the way out."""
    refused = []
    for prompt in NOTHING_LEFT:
        requests = collect_requests([prompt], None, num_frames=5, image_size=(16, 16), fps=8, seed=1)
        try:
            check_cleaning(requests, T5)
            refused.append(False)
        except ConfigError as error:
            refused.append("use_text_preprocessing=False" in str(error))
    return refused


def long_prompts(bench: Workbench) -> list[str]:
    """Warnings of two prompts that differ only in words beyond the length of the encoder."""
    encoder = build(TEXT_ENCODERS, {"type": "minilm", "model_max_length": 12}).load()
    prompts = [f"a red circle moves left while the camera follows it {end}" for end in ("at night", "in rain")]
    requests = collect_requests(prompts, None, num_frames=5, image_size=(16, 16), fps=8, seed=1)
    outcome = bench.tool(lambda _: warn_of_cut_prompts(requests, encoder))
    return re.findall(r"takes \d+; cut off: '[^']*'", outcome.text)


CASES = [
    OddInput("captions that cleaning empties", ["4 rows in, 0 kept, 4 dropped"], cleaned_captions),
    OddInput("prompts that cleaning empties: refused", [True] * 4, cleaned_prompts),
    OddInput(
        "prompts that are too long: the words cut off",
        ["takes 12; cut off: 'at night'", "takes 12; cut off: 'in rain'"],
        long_prompts,
    ),
]
