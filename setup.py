"""Package metadata; the requirement lists live in requirements/."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The entries of requirements/<name>.txt without comments."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


setup(
    name="opensora",
    version="0.1.0",
    description="Train and sample text-to-video diffusion models, from a laptop CPU to a cluster.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["opensora", "opensora.*"]),
    python_requires=">=3.11",
    install_requires=requirements("runtime"),
    extras_require={name: requirements(name) for name in ("tools", "ray", "test")},
    entry_points={"console_scripts": ["opensora = opensora.cli.main:program"]},
)
