"""Reference frames, mask strategies and prompt syntax against recordings of the original implementation."""

import json
import re
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.clip_conditioning import clip_conditioning
from opensora.sampling.mask_strategy import (
    continue_from_previous,
    frames_of_latents,
    nearest_multiple,
    parse_strategy,
    paste_references,
)
from opensora.sampling.prompt_syntax import add_scores, split_json, text_of_loop
from tests.parity.golden import Golden, directories


def has_masks(golden: Golden) -> bool:
    return (golden.path / "inference_masks.json").is_file()


def read(golden: Golden) -> dict[str, Any]:
    return json.loads((golden.path / "inference_masks.json").read_text(encoding="utf-8"))


GOLDEN = directories(has_masks, what="reference frames in sampling")


@pytest.mark.parametrize("golden", GOLDEN)
def test_strategies(golden: Golden) -> None:
    recorded = read(golden)
    assert recorded["parse"]
    for case in recorded["parse"]:
        assert [list(paste) for paste in parse_strategy(case["s"])] == case["parsed"], case
    for case in recorded["invalid"]:
        with pytest.raises(ConfigError):
            parse_strategy(case["s"])
    for case in recorded["find_nearest_point"]:
        assert nearest_multiple(case["value"], case["point"], case["max"]) == case["out"], case


@pytest.mark.parametrize("golden", GOLDEN)
def test_pasted_latents_and_masks(golden: Golden) -> None:
    cases = read(golden)["apply"]
    assert cases
    for case in cases:
        spans = [re.match(r"T=(\d+) values (\d+)\.\.", text) for text in case["refs"]]
        refs = [torch.arange(int(s[2]), int(s[2]) + int(s[1])).float().view(1, -1, 1, 1) for s in spans if s]
        assert len(refs) == len(spans)
        z = torch.full((1, case["T"], 1, 1), -1.0)
        pasted, mask = paste_references(z, refs, parse_strategy(case["mask_strategy"]), case["loop_i"], case["align"])
        assert pasted.flatten().tolist() == case["z"], case
        assert mask.tolist() == case["mask"], case


@pytest.mark.parametrize("golden", GOLDEN)
def test_prompt_extras(golden: Golden) -> None:
    recorded = read(golden)
    for case in recorded["prompt_loop"]:
        assert text_of_loop(case["prompt"], case["num_loop"]) == case["out"], case
    for case in recorded["prompt_json"]:
        assert [[part] for part in split_json(case["prompt"], "prompt")] == case["out"], case
    for case in recorded["append_score"]:
        assert add_scores(case["prompt"], case["aes"], case["flow"], case["cam"]) == case["out"], case


@pytest.mark.parametrize("golden", GOLDEN)
def test_loops(golden: Golden) -> None:
    """17 frames are encoded as 5 latents. The original cannot continue a video without references; here it can."""
    recorded = read(golden)
    for latents, frames in recorded["dframe_to_frame"].items():
        assert frames_of_latents(int(latents), lambda n: n // 17 * 5 + -(-(n % 17) // 4)) == frames
    settings = recorded["append_generated"]["inputs"]
    length, edit = settings["condition_frame_length"], settings["condition_frame_edit"]
    text = f"{settings['loop_i']},0,-{length},0,{length},{edit}"
    assert parse_strategy(text) == [continue_from_previous(settings["loop_i"], 0, length, edit)]


class ModelStub:
    def __init__(self, names: list[str]) -> None:
        self.size_conditions = names


@pytest.mark.parametrize("golden", GOLDEN)
def test_size_conditions_of_a_clip(golden: Golden) -> None:
    cases = [case for case in read(golden)["multi_resolution_info"] if "fps" in case["out"]]
    assert cases
    for case in cases:
        height, width = int(case["out"]["height"][0]), int(case["out"]["width"][0])
        fps = torch.full((len(case["out"]["fps"]),), 24.0)  # of the recorded videos; the fps of a picture differs
        conditions = clip_conditioning(ModelStub(list(case["out"])), (case["num_frames"], height, width), fps)
        assert {name: value.tolist() for name, value in conditions.items()} == case["out"], case
