"""`mask_ratios` is checked before anything is built."""

from dataclasses import replace
from typing import Any

import pytest

from opensora.config import load
from opensora.datasets.frame_masks import FrameConditions, FrameMasks
from opensora.errors import ConfigError
from opensora.interfaces import Denoiser
from opensora.registry import MODELS
from opensora.schema import TrainRun
from opensora.training.build import build_masks
from tests.support.command import ROOT, TRAIN


def run(**changes: Any) -> TrainRun:
    return replace(load(str(ROOT / TRAIN), ["mask_ratios={'mask_image_head': 0.25}"], TrainRun).run, **changes)


def test_masks_of_the_config() -> None:
    masks = build_masks(run(), "c.py")
    assert masks is not None
    assert masks.ratios == {"image_head": 0.25, "identity": 0.75}
    assert build_masks(run(mask_ratios=None), "c.py") is None
    assert build_masks(run(model={"type": "STDiT-S/2"}), "c.py") is not None


def test_bad_mask_ratios_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"c\.py: mask_ratios: .*'head'.*quarter_random"):
        build_masks(run(mask_ratios={"head": 1.0}), "c.py")
    with pytest.raises(ConfigError, match=r"model\.patch_size.*\(2, 2, 2\)"):
        build_masks(run(model={"type": "STDiT", "patch_size": [2, 2, 2]}), "c.py")
    with pytest.raises(ConfigError, match=r"'mask_ratios'.*'diffusion'"):
        load(str(ROOT / "configs/vae/train/debug.py"), ["mask_ratios={'image_head': 1.0}"], TrainRun)


def test_a_model_without_masks_is_refused() -> None:
    class Plain(Denoiser):
        def __init__(self, patch_size: tuple[int, int, int] = (1, 2, 2)):
            super().__init__()
            self.patch_size = patch_size

    MODELS.register_module(name="plain-test", module=Plain)
    try:
        with pytest.raises(ConfigError, match="plain-test"):
            build_masks(run(model={"type": "plain-test"}), "c.py")
    finally:
        MODELS.module_dict.pop("plain-test")


OF_1_3 = {"type": "STDiT3-XL/2-v1.3"}


def test_a_conditioned_model_is_given_frames_by_number() -> None:
    masks = build_masks(run(model=OF_1_3, mask_ratios={"i2v": 0.25, "v2v_tail": 0.5}), "c.py")
    assert isinstance(masks, FrameConditions)
    assert masks.ratios == {"i2v_head": 0.25, "v2v_tail": 0.5, "none": 0.25}
    plain = build_masks(run(model={**OF_1_3, "conditioned": False}, mask_ratios={"image_head": 1.0}), "c.py")
    assert isinstance(plain, FrameMasks)


def test_mask_kinds_of_other_conditioning_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"c\.py: mask_ratios: .*'image_head'.*i2v_head, i2v_tail, .*none"):
        build_masks(run(model=OF_1_3, mask_ratios={"image_head": 1.0}), "c.py")
    with pytest.raises(ConfigError, match=r"c\.py: mask_ratios: .*'i2v_head'.*quarter_random"):
        build_masks(run(mask_ratios={"i2v_head": 1.0}), "c.py")
    with pytest.raises(ConfigError, match=r"model\.patch_size.*\(2, 2, 2\)"):
        build_masks(run(model={**OF_1_3, "patch_size": [2, 2, 2]}, mask_ratios={"i2v": 1.0}), "c.py")
