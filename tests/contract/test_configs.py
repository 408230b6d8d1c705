"""Every file in configs/ is checked as the commands check it, and what it names is built on the meta device."""

from pathlib import Path

import pytest
import torch

from opensora.config import load
from opensora.models.assemble import assemble
from opensora.registry import VAES, build
from opensora.schema import SampleRun, TrainRun
from opensora.training.buckets import build_buckets
from opensora.training.build import build_scheduler

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in CONFIGS if "train" in p.parts], ids=short)
def test_train_config_builds_on_meta(path: Path) -> None:
    run = load(str(path), [], TrainRun).run
    clips = run.dataset["videos"] if run.dataset["type"] == "JointDataset" else run.dataset
    buckets = build_buckets(run, str(path))
    if buckets is not None:
        size, *image_size = buckets.size(buckets.all[0])
    else:
        size, image_size = clips["num_frames"], clips["image_size"]
    with torch.device("meta"):
        if run.task == "autoencoder":
            vae = build(VAES, run.vae)
            video = torch.empty(1, 3, size, *image_size)
            out, _ = vae(video, None)
            assert out.shape == video.shape
            return
        build_scheduler(run)
        parts = assemble(run.model, run.vae, run.text_encoder, num_frames=size, image_size=image_size, weights=False)
    assert all(p.is_meta for p in parts.model.parameters())
    assert parts.model.input_size[0] == parts.vae.latent_size((size, *image_size))[0]


@pytest.mark.parametrize("path", [p for p in CONFIGS if "sample" in p.parts], ids=short)
def test_sample_config_is_valid(path: Path) -> None:
    run = load(str(path), [], SampleRun).run
    assert run.load or run.model


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_place_says_the_use(path: Path) -> None:
    """configs/family/use/name.py, with what it is, how to run it and what to expect at its head."""
    parts = path.relative_to(ROOT / "configs").parts
    assert len(parts) == 3
    assert parts[1] in ("train", "sample")
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert "Run:" in text
