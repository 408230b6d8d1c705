"""The private attributes of colossalai and torch that parallel/ uses, and the versions with which they were checked.

After an upgrade: read the changes of the classes below, run tests/distributed, then write the new version into CHECKED.
"""

import ast
import importlib
import inspect
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from opensora.parallel.colossal.accelerator import import_colossalai

PARALLEL = Path(__file__).resolve().parents[2] / "opensora" / "parallel"
CHECKED = {"colossalai": "0.5.0", "torch": "2.14"}

# module:class (or module) -> attributes; those without an underscore are undocumented, and overridden or assigned here
USED = {
    "colossalai.zero:LowLevelZeroOptimizer": {
        *("_sanity_checks", "_attach_reduction_hook", "_reduce_grad", "_compute_grad_norm", "_unscale_and_clip_grads"),
        *("_add_to_bucket", "_run_reduction", "_dtype", "_working_param_groups"),
        *("_working_param_to_padded_working_param", "get_working_to_master_map", "require_grad_sync", "grad_handles"),
        *("pg_to_bucket_store", "pid_to_bucket_store", "pg_to_grad_store", "pid_to_grad_store"),
        *("pg_to_param_list", "param_to_pg", "num_param_groups", "optim", "step", "zero_grad"),
    },
    "colossalai.zero.low_level.bookkeeping:BucketStore": {
        *("build_grad_in_bucket", "_param_list", "_padding_size", "_grad_in_bucket", "grad_to_param_mapping"),
        *("offset_list", "world_size"),
    },
    "colossalai.zero.low_level.bookkeeping:GradientStore": {"_grads_of_params", "get_working_grads_by_group_id"},
    "colossalai.booster.plugin:LowLevelZeroPlugin": {
        *("supported_devices", "configure", "precision", "zero_optim_kwargs", "cast_inputs", "use_fp8", "verbose"),
    },
    "colossalai.booster.plugin.low_level_zero_plugin:LowLevelZeroModel": {"_hook_context"},
    "colossalai.booster.plugin:HybridParallelPlugin": {
        *("supported_devices", "configure", "__del__", "precision", "shard_config", "custom_policy"),
        *("mixed_dp_group", "tp_group", "sp_group"),
    },
    "colossalai.shardformer.policies.base_policy:Policy": {
        *("config_sanity_check", "preprocess", "postprocess", "module_policy", "model"),
    },
    "colossalai.shardformer.policies.t5:T5EncoderPolicy": {"module_policy"},
    "colossalai.accelerator.cpu_accelerator:CpuAccelerator": {
        *("get_rng_state", "manual_seed", "Stream", "Event", "current_stream", "default_stream", "set_stream"),
        *("stream", "synchronize", "empty_cache"),
    },
    "torch.distributed._composable": {"checkpoint"},
    "torch.distributed:ProcessGroup": {"_device_types", "_get_backend"},
    "torch.distributed.distributed_c10d": {"_get_default_group", "_get_default_store", "_world", "_set_pg_timeout"},
    "torch._C._distributed_c10d:Backend": {"_get_sequence_number_for_group"},
}
PUBLIC = {"_exit", "_current_frames", "_foreach_mul_", "_foreach_norm"}  # documented in spite of their names
PYTHON = {"_shutdown", "_run_exitfuncs"}  # of threading and atexit


@pytest.mark.parametrize("package", CHECKED)
def test_package_has_checked_version(package: str) -> None:
    installed, checked = version(package), CHECKED[package]
    assert f"{installed}.".startswith(f"{checked}."), (
        f"{package} {installed} is installed; the adapters of opensora/parallel were checked with {checked}: compare the "
        "classes that this file lists, run tests/distributed, then change CHECKED"
    )


def defines(owner: Any, name: str) -> bool:
    """True if a class or module has the attribute, or its source assigns or annotates it."""
    if hasattr(owner, name):
        return True
    modules = {
        each.__module__ for each in getattr(owner, "__mro__", ()) if each.__module__.partition(".")[0] in CHECKED
    }
    sources = [inspect.getsource(sys.modules[each]) for each in modules if each.startswith(("colossalai", "torch.d"))]
    return any(f"self.{name}" in source or f"\n    {name}:" in source for source in sources)


def test_private_attributes_exist() -> None:
    import_colossalai()
    missing = []
    for place, attributes in USED.items():
        module, _, name = place.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, name) if name else owner
        missing += [f"{place}: {attribute}" for attribute in sorted(attributes) if not defines(owner, attribute)]
    assert missing == [], "gone; opensora/parallel uses them: change the adapter and this list"


def test_every_private_attribute_in_use_is_listed() -> None:
    listed = {name for names in USED.values() for name in names} | PUBLIC | PYTHON
    own: set[str] = set()
    private: dict[str, set[str]] = {}
    for path in PARALLEL.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        names = {node.attr for node in attributes if node.attr.startswith("_") and not node.attr.startswith("__")}
        private[path.relative_to(PARALLEL).as_posix()] = names
    unlisted = {path: sorted(names - own - listed) for path, names in private.items() if names - own - listed}
    assert not unlisted, f"private attributes that USED does not list: {unlisted}"


def test_missing_attribute_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USED, "torch.distributed._composable", {"checkpoint", "gone"})
    with pytest.raises(AssertionError, match=r"torch\.distributed\._composable: gone"):
        test_private_attributes_exist()
    assert "colossalai" in sys.modules
