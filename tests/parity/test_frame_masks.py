"""Training masks against those recorded from the original implementation, seed by seed."""

import json
import re
from random import Random
from typing import Any

import pytest
import torch

from opensora.datasets.frame_masks import CONDITIONS, FrameMasks, condition_name
from tests.parity.golden import Golden, directories


def has(file: str) -> Any:
    return lambda golden: (golden.path / file).is_file()


@pytest.mark.parametrize("golden", directories(has("train_masks.json"), what="training masks"))
def test_training_masks(golden: Golden) -> None:
    recorded = json.loads((golden.path / "train_masks.json").read_text(encoding="utf-8"))
    version: Any = re.sub(r".*v(\d\.\d).*", r"\1", recorded["upstream"])
    assert recorded["examples"]
    for example in recorded["examples"]:
        rng, generator = Random(example["seed"]), torch.Generator().manual_seed(example["seed"])
        masks = FrameMasks(example["mask_ratios"], version)
        sampled = [masks.draw(example["T"], rng, generator) for _ in range(example["batch"])]
        assert torch.stack(sampled).long().tolist() == example["masks"], example


@pytest.mark.parametrize("golden", directories(has("mask_index.json"), what="conditioning frames of 1.3"))
def test_conditioning_frames(golden: Golden) -> None:
    recorded = json.loads((golden.path / "mask_index.json").read_text(encoding="utf-8"))
    assert recorded
    for example in recorded:  # each frame choice has a new generator
        condition = CONDITIONS[condition_name(example["mask_cond"])]
        frames = list(condition(example["latent_t"], Random(example["seed"])))
        assert frames == example["mask_index"], example
