"""Every file in configs/ is checked as the commands check it, and what it names is built on the meta device."""

from pathlib import Path

import pytest
import torch

from opensora.config import load
from opensora.models.build import assemble
from opensora.registry import VAES, build
from opensora.schema import EvaluateRun, SampleRun, TrainRun
from opensora.training.build import build_scheduler
from opensora.training.clip_plan import build_buckets

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("caption", "data", "evaluate")  # folders whose configs are no training or sampling runs
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.py")
    if "_base_" not in path.parts and path.relative_to(ROOT / "configs").parts[0] not in OTHERS
)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("family", sorted({path.parts[-3] for path in CONFIGS}))
def test_train_configs_build_on_meta(family: str) -> None:
    failures = []
    for path in [path for path in CONFIGS if path.parts[-3:-1] == (family, "train")]:
        try:
            build_on_meta(path)
        except Exception as error:
            failures.append(f"{short(path)}: {error!r}")
    assert failures == []


def build_on_meta(path: Path) -> None:
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


def test_sample_configs_are_valid() -> None:
    paths = [path for path in CONFIGS if "sample" in path.parts]
    runs = {short(path): load(str(path), [], SampleRun).run for path in paths}
    assert runs
    assert [name for name, run in runs.items() if not (run.load or run.model)] == []


def test_evaluation_configs_are_valid() -> None:
    runs = [load(str(path), [], EvaluateRun).run for path in sorted((ROOT / "configs" / "evaluate").glob("*.py"))]
    assert {config["type"] for run in runs for config in run.metrics.values()} >= {
        "PSNR",
        "Motion",
        "ShapeAdherence",
        "ObjectAdherence",
    }
    assert len({run.report_dir for run in runs}) == len(runs)


def recipes(use: str) -> list[Path]:
    """Configs of published recipes; their names begin with the size of a clip."""
    return [path for path in CONFIGS if use in path.parts and path.stem[0].isdigit() and path.parts[-3] != "vae"]


def test_released_families_have_train_and_sample_configs() -> None:
    assert {path.parts[-3] for path in recipes("train")} == {path.parts[-3] for path in recipes("sample")}


def test_recipes_sample_the_sizes_they_trained() -> None:
    """A sampling recipe that loads a training run has its sizes; a video model may also sample single images."""
    trained = [load(str(path), [], TrainRun).run for path in recipes("train")]
    for path in recipes("sample"):
        run = load(str(path), [], SampleRun).run
        sources = [each for each in trained if each.run_dir == run.load]
        for each in sources:
            clips = each.dataset["videos"] if each.dataset["type"] == "JointDataset" else each.dataset
            assert run.num_frames in (clips["num_frames"], 1), path
            assert run.image_size is not None, path
            assert tuple(run.image_size) == tuple(clips["image_size"]), path
        assert sources or "tools.weights.convert" in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("frames", "batch_size", "save_every", "workers", "sp_size"),
    [(65, 2, 500, 10, None), (221, 1, 250, 8, 8), (513, 1, 250, 8, 8)],
)
def test_stages_of_open_sora_plan(
    frames: int, batch_size: int, save_every: int, workers: int, sp_size: int | None
) -> None:
    """The published settings of each stage: four images per clip, learning rate, batch size, eight devices per clip."""
    run = load(str(ROOT / f"configs/latte_t2v/train/{frames}x512x512.py"), [], TrainRun).run
    assert (run.dataset["use_image_num"], run.dataset["videos"]["num_frames"]) == (4, frames)
    assert tuple(run.dataset["videos"]["image_size"]) == tuple(run.dataset["pictures"]["image_size"]) == (512, 512)
    assert (run.batch_size, run.save_every, run.num_workers, run.sp_size) == (batch_size, save_every, workers, sp_size)
    assert (run.optimizer["lr"], run.warmup_steps, run.lr_scheduler["type"]) == (2e-5, 0, "constant")
    assert run.text_encoder is not None
    assert (run.text_encoder["model_max_length"], run.steps, run.grad_checkpoint) == (300, 1_000_000, True)


def test_config_path_and_header() -> None:
    """The path is configs/FAMILY/USE/NAME.py; a docstring at the top describes the config and shows its command."""
    for path in CONFIGS:
        parts = path.relative_to(ROOT / "configs").parts
        assert len(parts) == 3, path
        assert parts[1] in ("train", "sample"), path
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        assert "Run:" in text, path
