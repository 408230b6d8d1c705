"""Text encoding against numbers recorded from the original implementation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora.models.text.cleaning import clean, preprocess
from opensora.models.text.t5 import T5Encoder
from tests.parity.golden import Golden, assert_parity, cases, directories


def has_pairs(golden: Golden) -> bool:
    return (golden.path / "clean.json").is_file()


@pytest.mark.parametrize("golden", directories(has_pairs, what="caption cleaning"))
def test_cleaning(golden: Golden) -> None:
    pairs = json.loads((golden.path / "clean.json").read_text(encoding="utf-8"))["pairs"]
    assert pairs
    for pair in pairs:
        caption = pair["input"]
        assert clean(caption) == pair["clean_once"], caption
        assert preprocess(caption) == pair["text_preprocessing"], caption
        assert preprocess(caption, use_text_preprocessing=False) == pair["no_clean"], caption


@pytest.mark.parametrize("case", cases(lambda golden: "t5_config" in golden.config, what="T5"))
def test_t5(case: tuple[Golden, str], tmp_path: Path) -> None:
    golden, name = case
    settings, recorded = golden.config["cases"][name], golden.case(name)
    (tmp_path / "config.json").write_text(json.dumps(golden.config["t5_config"]), encoding="utf-8")
    for file in ("spiece.model", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(golden.path / file, tmp_path)
    save_file(load_file(golden.path / "state.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    length = recorded.outputs["mask"].shape[1]
    encoder = T5Encoder(str(tmp_path), length, use_text_preprocessing=False)
    assert encoder.output_dim == golden.config["t5_config"]["d_model"]
    condition = encoder.load().encode(settings["texts"])
    assert condition.mask_BL is not None
    assert condition.mask_BL.dtype == torch.int64
    assert torch.equal(condition.mask_BL, recorded.outputs["mask"])
    assert condition.mask_BL.sum(1).tolist() == settings["lens"]
    assert_parity(condition.text_B1LC, recorded.outputs["y"])
