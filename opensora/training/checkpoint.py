"""Checkpoints that survive kill -9, full disks and flipped bits.

    RUN_DIR/checkpoints/step-00000100/state/           sharded masters, moments, average (any number of ranks)
                                      weights/NAME/    model.safetensors and config.json, for `from_pretrained`
                                      manifest.json    step, meta, size and SHA-256 of every file

A checkpoint is written to a hidden folder next to it, flushed, and renamed: a folder called step-* is complete. All ranks
call every function here. What one rank finds or fails at, all ranks act on: they exchange it over `group`, the process
group of the thread that saves while training goes on, or over the default group.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from opensora import files, log
from opensora.errors import CheckpointError, WeightsError
from opensora.parallel import collectives, dcp

T = TypeVar("T")
WEIGHTS, AVERAGE = "model", "ema"  # names below weights/
_STEP, _PARTIAL, _REPLACED, _PRUNED = "step-", ".partial-", ".replaced-", ".pruned-"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with all files intact."""

    step: int  # optimizer steps done
    folder: Path
    meta: dict[str, Any]  # the run's own values, see `save`


def save(
    run_dir: Path | str,
    step: int,
    state: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, Tensor]],
    configs: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
    keep_last: int,
    group: collectives.Group = None,
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep_last` (0 keeps all).

    state: tensors and DTensors for torch.distributed.checkpoint, from every rank.
    weights: {name: whole tensors}, read on the main rank only; written with config.json = configs[name].
    meta: anything JSON can hold.
    Raises CheckpointError, on every rank, when the disk is full or the folder cannot be written; then earlier checkpoints
    are still there, and nothing of this one.
    """
    root = Path(run_dir) / "checkpoints"
    final, part = root / f"{_STEP}{step:08d}", root / f"{_PARTIAL}{_STEP}{step:08d}"
    on_main, on_all = partial(_on_main, group=group), partial(_on_all, group=group)
    try:
        on_main(lambda: _make_room(root, part))
        on_all(lambda: dcp.save_sharded(state, part / "state", group))
        on_main(lambda: _write_weights(part / "weights", weights, configs))
        # a network file system may show a machine its own new files before those of another one
        names = sorted(set().union(*on_all(lambda: files.list_files(part))))
        shares = on_all(lambda: _describe(part, _share(names)))
        entries = {name: entry for share in shares for name, entry in share.items()}
        on_main(lambda: _publish(part, final, {"step": step, "meta": dict(meta), "files": entries}))
    except _Failed as failed:
        on_main(lambda: shutil.rmtree(part, ignore_errors=True))
        raise CheckpointError(_explain(failed, root, f"step {step} was being saved")) from None
    try:
        on_main(lambda: _prune(root, step, keep_last))
    except _Failed as failed:  # the new one is safe, so the run goes on
        log.logger().warning("%s: old checkpoints could not be deleted: %s", root, failed.text)
    return final


def prepare(run_dir: Path | str) -> None:
    """Before training: remove what killed saves left, and test that checkpoints can be written.

    Raises CheckpointError now rather than at the first save.
    """
    root = Path(run_dir) / "checkpoints"
    probe = _probe(root, collectives.rank())
    try:
        _on_main(partial(_clean, root))
        _on_all(partial(_write_probe, probe))
        missing = _on_main(
            lambda: [rank for rank in range(collectives.world_size()) if not _probe(root, rank).exists()]
        )
        _on_all(probe.unlink)
    except _Failed as failed:
        raise CheckpointError(_explain(failed, root, "it was being tried")) from None
    if missing:
        ranks = ", ".join(map(str, missing[:8]))
        raise CheckpointError(
            f"{root}: what rank(s) {ranks} wrote there is not seen by rank 0; allowed: a folder that all machines share; "
            "choose a run_dir on a shared file system"
        )


def find(run_dir: Path | str, up_to: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint of the run, None when it has none yet. Changes nothing on the disk.

    up_to: ignore checkpoints after more optimizer steps.
    Logs each damaged checkpoint that it passes over. Raises CheckpointError when all of them are damaged.
    """
    root, damaged = Path(run_dir) / "checkpoints", set[int]()
    try:
        while True:
            steps = [step for step in _on_main(partial(_steps, root)) if up_to is None or step <= up_to]
            left = [step for step in steps if step not in damaged]
            if not left:
                break
            folder = root / f"{_STEP}{left[0]:08d}"
            faults = [fault for share in _on_all(partial(_verify, folder)) for fault in share]
            if not faults:
                return Checkpoint(left[0], folder, _on_main(partial(_manifest, folder))["meta"])
            if not _on_main(folder.exists):
                continue  # the run that trains there deleted it in the meantime
            damaged.add(left[0])
            if collectives.rank() == 0:
                log.logger().warning("%s: damaged, taking the one before: %s", folder, "; ".join(sorted(set(faults))))
    except _Failed as failed:
        raise CheckpointError(f"{root}: {failed.text}; the checkpoints could not be read; see to the disk") from None
    if steps:
        raise CheckpointError(
            f"{root}: all {len(steps)} checkpoints are damaged; one whole checkpoint is needed; restore one "
            "from a copy, or name another run"
        )
    return None


def has_checkpoint(run_dir: Path | str) -> bool:
    """True if the run has saved a checkpoint, damaged or not. Raises CheckpointError."""
    root = Path(run_dir) / "checkpoints"
    try:
        return bool(_on_main(partial(_steps, root)))
    except _Failed as failed:
        raise CheckpointError(f"{root}: {failed.text}; the checkpoints could not be read; see to the disk") from None


def load(checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
    """Read the checkpoint's state into the tensors of `state`, on any number of ranks.

    Raises CheckpointError when the checkpoint belongs to another model.
    """
    try:
        dcp.load_sharded(state, checkpoint.folder / "state")
    except OSError as error:
        raise CheckpointError(f"{checkpoint.folder}: cannot be read ({error}); see to the disk") from error


def resolve_weights(path: str, ema: bool) -> Path:
    """The weights that `path` names: a run folder, a checkpoint, a weights folder or a file. Raises WeightsError.

    ema: prefer the averaged weights if there are any.
    """
    weights = Path(path)
    if (weights / "checkpoints").is_dir():
        newest = find(weights)
        if newest is None:
            raise WeightsError(f"{path}: the run has no checkpoint yet; let it save one, or name other weights")
        weights = newest.folder
    if (weights / "weights").is_dir():
        folders = [weights / "weights" / name for name in ([AVERAGE, WEIGHTS] if ema else [WEIGHTS])]
        weights = next((folder for folder in folders if folder.is_dir()), weights)
    if not weights.exists():
        raise WeightsError(
            f"{path}: no such file or folder; allowed: a run folder, a checkpoint or weights; check the path"
        )
    return weights


def resolve_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a component, with a run or checkpoint of ours in `from_pretrained` replaced by its weights folder.

    The parts of OpenSoraVAE_V1_2, `spatial` and `temporal`, are components as well.
    """
    parts = {key: resolve_part(config[key]) for key in ("spatial", "temporal") if isinstance(config.get(key), Mapping)}
    config = {**config, **parts}
    path = config.get("from_pretrained")
    if isinstance(path, str) and any((Path(path) / inside).is_dir() for inside in ("checkpoints", "weights")):
        return {**config, "from_pretrained": str(resolve_weights(path, ema=True))}
    return dict(config)


class _Failed(Exception):
    """A failure on at least one rank, raised on all."""

    def __init__(self, text: str, number: int | None):
        super().__init__(text)
        self.text, self.number = text, number


def _on_all(action: Callable[[], T], group: collectives.Group = None) -> list[T]:
    """Every rank's result of `action`. If one raises, all raise, so that none waits for a rank that has left."""
    result: T | None = None
    failure: tuple[str, int | None] | None = None
    try:
        result = action()
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        text = str(error) if isinstance(error, (OSError, CheckpointError)) else f"{type(error).__name__}: {error}"
        failure = (text, number)
    answers = collectives.gather_objects((result, failure), group)
    for rank, (_, fault) in enumerate(answers):
        if fault is not None:
            text, number = fault
            raise _Failed(text if len(answers) == 1 else f"rank {rank}: {text}", number)
    return [answer for answer, _ in answers]  # type: ignore[misc]


def _on_main(action: Callable[[], T], group: collectives.Group = None) -> T:
    """The result of `action`, which only the main rank runs."""
    return _on_all(lambda: action() if collectives.rank() == 0 else None, group)[0]  # type: ignore[return-value]


def _explain(failed: _Failed, root: Path, doing: str) -> str:
    if failed.number in _FULL_DISK:
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        free = shutil.disk_usage(existing).free / 2**20
        return (
            f"{root}: the disk is full, found while {doing} ({failed.text}); {free:.0f} MiB are free; "
            "earlier checkpoints are untouched; make room and run the same command again"
        )
    if failed.number is not None:
        return (
            f"{root}: cannot be written, found while {doing} ({failed.text}); a folder this user may write is needed; "
            "change its permissions or choose another run_dir"
        )
    return f"{root}: failed while {doing}: {failed.text}; earlier checkpoints are untouched"


def _make_room(root: Path, part: Path) -> None:
    _clean(root)
    part.mkdir()


def _clean(root: Path) -> None:
    """Make the folder, or remove what killed saves left in it."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in root.iterdir():
        original = root / folder.name.removeprefix(_REPLACED)
        if folder.name.startswith(_REPLACED) and not original.exists():
            folder.rename(original)  # killed between the two renames of a replacement
        elif folder.name.startswith((_PARTIAL, _REPLACED, _PRUNED)):
            shutil.rmtree(folder, ignore_errors=True)  # if a reader still has a file open, the next save removes it


def _probe(root: Path, rank: int) -> Path:
    return root / f".probe-{rank}"


def _write_probe(probe: Path) -> None:
    # on a machine that does not share the folder it does not exist yet; `prepare` then misses this file on rank 0
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"x")


def _steps(root: Path) -> list[int]:
    """The steps of the checkpoints, newest first."""
    digits = (folder.name.removeprefix(_STEP) for folder in root.glob(f"{_STEP}*"))
    return sorted((int(number) for number in digits if number.isdigit()), reverse=True)


def _write_weights(
    folder: Path, weights: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    for name, tensors in weights.items():
        (folder / name).mkdir(parents=True)
        files.write_json(folder / name / "config.json", configs[name], sort_keys=True)
        files.write_tensors(folder / name / "model.safetensors", tensors, {"format": "pt"})


def _share(names: list[str]) -> list[str]:
    return names[collectives.rank() :: collectives.world_size()]


def _describe(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Flush each file; returns its size and hash."""
    for name in names:
        files.flush(folder / name)
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": files.hash_file(folder / name)} for name in names}


def _publish(part: Path, final: Path, manifest: dict[str, Any]) -> None:
    manifest = json.loads(json.dumps(manifest))  # as a reader will parse it, so that both compute the same hash
    files.write_json(part / "manifest.json", {**manifest, "sha256": _digest(manifest)}, sort_keys=True)
    files.flush(part / "manifest.json")
    for folder in [*(path for path in part.rglob("*") if path.is_dir()), part]:
        files.flush(folder)
    if final.exists():  # a damaged checkpoint, or a step trained again
        replaced = final.with_name(f"{_REPLACED}{final.name}")
        final.rename(replaced)
        part.rename(final)
        files.flush(final.parent)
        shutil.rmtree(replaced)
    else:
        part.rename(final)
        files.flush(final.parent)


def _prune(root: Path, step: int, keep_last: int) -> None:
    """Delete old checkpoints. Those after `step` are damaged ones that the run passed over; they do not count as kept."""
    if keep_last < 1:
        return
    for old in [number for number in _steps(root) if number <= step][keep_last:]:
        folder = root / f"{_STEP}{old:08d}"
        renamed = folder.rename(root / f"{_PRUNED}{folder.name}")  # so that no partial folder has the real name
        shutil.rmtree(renamed)


def _verify(folder: Path) -> list[str]:
    """The faults in this rank's share of the files, in words."""
    try:
        manifest = _manifest(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"manifest.json cannot be used ({error})"]
    faults = []
    for name in _share(sorted(manifest["files"])):
        try:
            fault = _compare(folder / name, manifest["files"][name])
        except OSError as error:
            fault = f"cannot be read ({error})"
        if fault:
            faults.append(f"{name} {fault}")
    return faults


def _compare(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"has {path.stat().st_size} bytes instead of {expected['bytes']}"
    return None if files.hash_file(path) == expected["sha256"] else "has changed since it was written (SHA-256 differs)"


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.pop("sha256") != _digest(manifest):
        raise ValueError("it has changed since it was written")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
