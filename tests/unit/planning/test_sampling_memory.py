"""Estimates of the memory of sampling, and the choice that they lead to."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.build import build_autoencoder, build_denoiser
from opensora.planning.sampling_memory import FRAMEWORK, Choice, SamplingMemory, choose, memory_size, summary

VAE: dict[str, Any] = {
    "type": "CausalVAEModel",
    "hidden_size": 8,
    "num_res_blocks": 1,
    "norm_groups": 2,
    "tile_sample_min_size": 64,
    "tile_sample_min_size_t": 5,
}
MODEL: dict[str, Any] = {
    "type": "STDiT",
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 4,
    "in_channels": 4,
    "input_size": (3, 16, 16),
    "caption_channels": 32,
    "model_max_length": 8,
}
MEMORY = SamplingMemory(MODEL, VAE, None, size=(9, 128, 128), copies=2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("12GB", 12 * 10**9), ("11.5 GiB", int(11.5 * 2**30)), ("800mb", 8 * 10**8), ("2g", 2 * 10**9), (4096, 4096)],
)
def test_sizes(value: str | int, expected: int) -> None:
    assert memory_size(value, "key 'max_memory'") == expected


@pytest.mark.parametrize("value", ["", "GB", "12 apples", "-1GB", "0", "12GBs", "1e3GB"])
def test_other_words_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"key 'max_memory': found .*; allowed: a size such as '12GB'"):
        memory_size(value, "key 'max_memory'")


def test_weights_are_those_of_the_networks() -> None:
    """4 bytes per number, or 2; the denoiser has buffers as well."""
    denoiser, vae = build_denoiser(MODEL), build_autoencoder(VAE)
    numbers = [sum(each.numel() for each in (*net.parameters(), *net.buffers())) for net in (denoiser, vae)]
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        weights = replace(MEMORY, dtype=dtype).weights
        assert list(weights.values()) == [0, *(size * count for count in numbers)]


def test_offload_leaves_the_weights_of_one_network() -> None:
    plain, offloaded = MEMORY.peaks(Choice()), MEMORY.peaks(Choice(offload=True))
    weights = MEMORY.weights
    assert list(plain) == ["denoising", "decoding"]
    assert plain["denoising"] - offloaded["denoising"] == weights["autoencoder"]
    assert plain["decoding"] - offloaded["decoding"] == weights["denoiser"]
    assert plain["denoising"] > FRAMEWORK + sum(weights.values())


def test_tiles_lower_decoding_alone() -> None:
    plain, tiled = MEMORY.peaks(Choice()), MEMORY.peaks(Choice(tiling=True))
    assert tiled["denoising"] == plain["denoising"]
    assert tiled["decoding"] - FRAMEWORK < 0.5 * (plain["decoding"] - FRAMEWORK)


def test_the_host_holds_copies_for_convolutions_and_reads_weights_in_single_precision() -> None:
    host = replace(MEMORY, on_host=True)
    device, on_host = MEMORY.peaks(Choice()), host.peaks(Choice())
    weights = MEMORY.weights
    assert on_host["loading"] == FRAMEWORK + sum(weights.values())  # single precision anyway
    half = replace(host, dtype=torch.bfloat16)
    narrow = half.weights
    assert half.peaks(Choice())["loading"] == FRAMEWORK + max(
        2 * narrow["denoiser"], narrow["denoiser"] + 2 * narrow["autoencoder"]
    )
    # input and output of a convolution, 8 channels each of 9 frames of 128x128
    assert on_host["decoding"] - device["decoding"] >= 2 * 8 * 9 * 128 * 128 * 4


def test_longer_videos_take_more() -> None:
    short = replace(MEMORY, model={**MODEL, "input_size": (2, 16, 16)}, size=(5, 128, 128))
    for stage, size in MEMORY.peaks(Choice()).items():
        assert size > short.peaks(Choice())[stage]


def test_the_least_change_that_fits_is_chosen() -> None:
    peaks = {name: max(MEMORY.peaks(each).values()) for name, each in CHOICES.items()}
    assert peaks["nothing"] > peaks["offload"] > peaks["both"]
    for name, size in peaks.items():
        assert choose(MEMORY, size, Choice())[0] == CHOICES[name]
    assert choose(MEMORY, 10**12, Choice(tiling=True))[0] == Choice(tiling=True)  # the run's own choice stays


CHOICES = {"nothing": Choice(), "offload": Choice(offload=True), "both": Choice(offload=True, tiling=True)}


def test_on_the_host_nothing_is_offloaded() -> None:
    host = replace(MEMORY, on_host=True)
    assert [each.offload for each in host.choices(Choice())] == [False, False]


def test_too_little_is_a_sentence_with_the_need() -> None:
    need = max(MEMORY.peaks(Choice(offload=True, tiling=True)).values())
    message = (
        rf"key 'max_memory': found 1\.00 GB; needed: {need / 1e9:.2f} GB, while videos are \w+, with all that lowers memory; "
        r"allowed: that or more; or sample fewer frames or a smaller size, or in dtype='bf16'"
    )
    with pytest.raises(ConfigError, match=message):
        choose(MEMORY, 10**9, Choice())


def test_the_summary_names_stages_and_choice() -> None:
    choice, peaks = choose(MEMORY, 10**12, Choice())
    text = summary(MEMORY, 10**12, choice, peaks)
    assert text.startswith("max_memory 1000.00 GB: estimated denoising ")
    assert text.endswith("; chosen: nothing, all fits")
