"""The weights of an autoencoder run at its first step."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.config import load
from opensora.errors import ConfigError
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.principal_start import principal_start
from opensora.models.vae.tail_init import tail_init
from opensora.models.weights import save_weights
from opensora.schema import TrainRun
from opensora.training import first_weights
from opensora.training.first_weights import set_first_weights
from opensora.types import Batch
from tests.support.command import ROOT
from tests.unit.models.vae.test_open_sora_1_2 import SPATIAL, v1_2
from tests.unit.models.vae.test_principal_start import LAYOUT, smooth_clips
from tests.unit.models.vae.test_tail_init import WIDTHS, causal, image_autoencoder

RUN = load(str(ROOT / "configs/vae/train/debug.py"), [], TrainRun).run


def start(model: Any, **keys: Any) -> dict[str, torch.Tensor]:
    set_first_weights(model, replace(RUN, **keys), "c.py", lambda: iter(()))
    return model.state_dict()


def mix_factors(state: dict[str, torch.Tensor]) -> list[float]:
    return [tensor.item() for name, tensor in state.items() if name.endswith("mix_factor")]


def test_from_an_image_autoencoder_of_a_run(tmp_path: Path) -> None:
    """A run holds trained weights and their average: the average is taken."""
    average = image_autoencoder().state_dict()
    for folder, factor in (("weights/model", 0), ("weights/ema", 1)):
        save_weights(tmp_path / folder, {f"module.{name}": factor * each for name, each in average.items()}, {})
    state = start(causal(), tail_init=str(tmp_path))
    torch.testing.assert_close(state, tail_init(average, causal()), rtol=0, atol=0)
    assert mix_factors(state) == [2.0] * 4


def test_mixing_factors_are_reset_after_loading(tmp_path: Path) -> None:
    before = causal()
    for parameter in before.parameters():
        parameter.data.fill_(0.25)
    save_weights(tmp_path, before.state_dict(), before.config)
    state = start(causal(), load=str(tmp_path), reset_mix_factor=0.5)
    assert mix_factors(state) == [0.5] * 4
    assert all((each == 0.25).all() for name, each in state.items() if not name.endswith("mix_factor"))


def test_spatial_latents_of_another_scale_are_refused(tmp_path: Path) -> None:
    """The temporal part knows its input at one scale, which stands in the config and not in the weights."""
    before = v1_2(spatial={"config": SPATIAL, "latent_scale": [1.0, 2.0, 3.0, 4.0]})
    save_weights(tmp_path, before.state_dict(), before.config)
    message = r"c\.py: key 'load': .* trained on spatial latents with latent_scale=\[1\.0.*, and vae\.spatial has None"
    with pytest.raises(ConfigError, match=message):
        start(v1_2(), load=str(tmp_path))
    start(v1_2(spatial={"config": SPATIAL, "latent_scale": (1.0, 2.0, 3.0, 4.0)}), load=str(tmp_path))


def batches(clips: torch.Tensor) -> list[Batch]:
    return [
        Batch(clip[None], captions=[""], fps_B=torch.ones(1), step=0, sample_ids=[row], rows=[row])
        for row, clip in enumerate(clips)
    ]


def test_principal_components_of_the_first_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many clips are taken as reach the number of pixels, in order."""
    clips = smooth_clips()
    monkeypatch.setattr(first_weights, "_START_PIXELS", 3 * clips[0, 0].numel())
    trained, expected = (CausalVAEModel(**LAYOUT, z_channels=4, embed_dim=4) for _ in range(2))
    expected.load_state_dict(trained.state_dict())
    principal_start(expected, clips[:3])
    set_first_weights(trained, replace(RUN, principal_start=True), "c.py", lambda: iter(batches(clips)))
    torch.testing.assert_close(trained.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_principal_components_need_their_layout() -> None:
    message = r"c\.py: key 'principal_start': vae: principal components need SpatialUnshuffle2x"
    with pytest.raises(ConfigError, match=message):
        set_first_weights(causal(), replace(RUN, principal_start=True), "c.py", lambda: iter(batches(smooth_clips())))


def test_without_mixing_there_is_nothing_to_reset() -> None:
    plain = CausalVAEModel(
        **WIDTHS,
        encoder_temporal_downsample=["", "TimeDownsample2x", "TimeDownsample2x", ""],
        decoder_temporal_upsample=["", "", "TimeUpsample2x", "TimeUpsample2x"],
    )
    with pytest.raises(ConfigError, match=r"c\.py: key 'reset_mix_factor': CausalVAEModel as configured mixes no"):
        start(plain, reset_mix_factor=0.5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tail_init=a", "load=b"], "keys 'tail_init', 'load': both name the weights to start from"),
        (["tail_init=a", "vae.from_pretrained=b"], "keys 'tail_init', 'vae.from_pretrained': both name"),
        (["principal_start=True", "load=b"], "keys 'principal_start', 'load': both name the weights to start from"),
        (["principal_start=True", "tail_init=b"], "keys 'tail_init', 'principal_start': both name the weights"),
        (
            ["principal_start=True", "vae={'_delete_': True, 'type': 'OpenSoraVAE_V1_3'}"],
            "key 'principal_start': found with vae.type 'OpenSoraVAE_V1_3'; allowed: 'CausalVAEModel', whose layouts have",
        ),
        (
            ["tail_init=a", "vae={'_delete_': True, 'type': 'OpenSoraVAE_V1_3'}"],
            "with vae.type 'OpenSoraVAE_V1_3'; allowed",
        ),
        (
            ["validation_perceptual={'type': 'STLPIPS'}", "validation_dataset=none"],
            "key 'validation_perceptual': found without validation_dataset",
        ),
        (["reconstruct=latents", "perceptual={'type': 'STLPIPS'}"], "found 'latents', and 'perceptual' judges pixels"),
        (["identity_weight=1"], "found 1 with reconstruct='pixels'; allowed: with 'latents'"),
        (["identity_weight=1", "reconstruct=latents"], "found 1, and no clip has one frame"),
        (["min_frames=2", "bucket_config={'16x16': {1: (1.0, 1)}}"], "keys 'min_frames', 'bucket_config': both say"),
        (["lr_groups={'time': -1}"], "key 'lr_groups': found {'time': -1}; allowed: 0 or more, for each number"),
    ],
)
def test_keys_that_do_not_go_together(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(str(ROOT / "configs/vae/train/debug.py"), overrides, TrainRun)


@pytest.mark.parametrize(
    "key",
    [
        *("tail_init=a", "reset_mix_factor=0.5", "validation_perceptual={'type': 'STLPIPS'}"),
        *("identity_weight=1.0", "min_frames=2", "principal_start=True"),
    ],
)
def test_keys_of_autoencoders_alone(key: str) -> None:
    with pytest.raises(ConfigError, match=f"key '{key.partition('=')[0]}': belongs to task 'autoencoder'"):
        load(str(ROOT / "configs/stdit/train/debug.py"), [key], TrainRun)
