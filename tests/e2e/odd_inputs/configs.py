"""Values of config keys and flags that make no sense."""

from opensora.config import load
from opensora.errors import ConfigError
from opensora.schema import TrainRun
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.command import ROOT, TRAIN

REFUSED = [
    "optimizer.lr=-1e-4",
    "optimizer.lr=1e400",
    "optimizer.betas=1.5,2",
    "optimizer.betas=[0.9]",
    "optimizer.eps=-1",
    "optimizer.weight_decay=-0.1",
    "model.hidden_size=0",
    "model.hidden_size=-8",
    "model.num_heads=0",
    "model.depth=-1",
    "model.mlp_ratio=0",
    "model.drop_path=1",
    "model.patch_size=(1,2)",
    "vae.hidden_size=0",
    "scheduler.num_sampling_steps=0",
    "text_encoder.model_max_length=0",
    "dataset.clips=0",
    "grad_clip=-1",
    "ema_decay=1",
    "plugin_config.reduce_bucket_size_in_m=0",
]


def refusals(bench: Workbench) -> list[str]:
    """Overrides that are not refused in a sentence that names their key."""
    passed = []
    for override in REFUSED:
        key = override.partition("=")[0]
        try:
            load(str(ROOT / TRAIN), [override], TrainRun)
        except ConfigError as error:
            if str(error).startswith("command line") and f"key '{key}': found" in str(error):
                continue
        passed.append(override)
    return passed


CASES = [
    OddInput("values that torch refuses or takes silently: passed", [], refusals),
    OddInput(
        "sides that patches do not divide: train",
        "exit 2",
        lambda bench: bench.opensora(
            "train", str(ROOT / TRAIN), "dataset.image_size=(60, 90)", f"run_dir={bench.folder}"
        ).has("command line", "key 'dataset.image_size': found (60, 90); allowed: multiples of", "nearest: (60, 88)"),
    ),
    OddInput(
        "frames that the autoencoder would drop: train",
        "exit 2",
        lambda bench: bench.opensora("train", str(ROOT / TRAIN), "dataset.num_frames=6", f"run_dir={bench.folder}").has(
            "command line", "key 'dataset.num_frames': found 6; allowed: 5 or 7 frames, which CausalVAEModel holds"
        ),
    ),
    OddInput(
        "a negative learning rate: train",
        "exit 2",
        lambda bench: bench.opensora("train", str(ROOT / TRAIN), "optimizer.lr=-1").has(
            "key 'optimizer.lr': found -1; allowed: 0 or more"
        ),
    ),
]
