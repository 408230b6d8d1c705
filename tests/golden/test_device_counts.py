"""Kernels, memory, copies and collectives of a step on a device are the recorded ones."""

import re

import pytest
import torch

from tests.golden.device_counts import COMMAND, measure, read


@pytest.mark.filterwarnings("ignore:It seems like you did not set/select the default device")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the fake device takes the place of a missing one")
def test_counts_on_a_device_are_the_recorded_ones() -> None:
    counts = {name: str(value) for name, value in measure().items()}
    recorded = read()
    changed = [
        f"{name}: {counts.get(name, 'gone')}, before {recorded.get(name, 'not there')}"
        for name in {**recorded, **counts}
        if counts.get(name) != recorded.get(name)
    ]
    assert changed == [], f"if this is meant, run `{COMMAND}` and look at the diff"


def test_recorded_kernels_do_not_depend_on_the_batch_size() -> None:
    """Of one sample they may be fewer: its vectors are the weights of one norm."""
    recorded = read()
    pairs = {
        name: (value, recorded[name.replace("batch 4", "batch 8")])
        for name, value in recorded.items()
        if re.search("STDiT3.*zero2, batch 4: .* kernels", name)  # the other families have the same parts
    }
    assert len(pairs) == 4
    assert {name: pair for name, pair in pairs.items() if len(set(pair)) > 1} == {}


def test_recorded_blocks_of_bf16_weights_have_no_float32_tokens() -> None:
    wide = {name: value for name, value in read().items() if re.search("zero2, batch .: float32 tensors", name)}
    assert len(wide) >= 12
    assert set(wide.values()) == {"0"}
