"""Sharded state on disk through torch.distributed.checkpoint (DCP). Any number of ranks may read it."""

import pickle
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta, TensorStorageMetadata

from opensora.errors import CheckpointError
from opensora.parallel import collectives


def open_file(path: Path, mode: str) -> IO[bytes]:
    """Open one file of a sharded state: every read and write of one goes through here."""
    return path.open(mode)


class _Files(FileSystem):
    @contextmanager
    def create_stream(self, path: str | PathLike, mode: str) -> Generator[Any, None, None]:
        with open_file(Path(path), mode) as stream:
            try:
                yield stream
            except RuntimeError as error:  # torch.save reports a failed write as a wrong position in the file
                raise _root_cause(error) from error


# Modules and names that torch.distributed.checkpoint writes into .metadata.
_WRITTEN_BY_TORCH = {
    "torch": {"Size", "strided", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
}


class _MetadataUnpickler(pickle.Unpickler):
    """Makes what torch.distributed.checkpoint writes and nothing else: a pickle may name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # the member of an enumeration, in some versions of Python
            return _member
        if name not in _WRITTEN_BY_TORCH.get(module, ()) and not (module == "torch" and _is_dtype(name)):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _member(enumeration: Any, name: str) -> Any:
    if enumeration is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"it names {name} of {enumeration}")
    return enumeration[name]


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


class _Reader(dcp.FileSystemReader):
    """Reads .metadata without running what may be in it; the tensors are read so by torch."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path, ".metadata")
        with open_file(path, "rb") as file:
            try:
                metadata = _MetadataUnpickler(file).load()
            except OSError:
                raise
            except Exception as error:  # of a broken pickle, which may fail in any way
                raise CheckpointError(
                    f"{path}: not the index of a checkpoint ({error}); allowed: what torch.distributed.checkpoint writes; "
                    "nothing of it was run; restore the checkpoint from where it was written"
                ) from None
        if not isinstance(metadata, Metadata):
            raise CheckpointError(
                f"{path}: a {type(metadata).__name__} found; allowed: what torch.distributed.checkpoint writes; restore the "
                "checkpoint from where it was written"
            )
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _root_cause(error: BaseException) -> BaseException:
    """The OSError that led to `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def save_sharded(state: Mapping[str, Any], folder: Path, group: collectives.Group = None) -> None:
    """Write `state` (tensors and DTensors) to `folder`, one file per rank, and flush it to the disk. All ranks call.

    group: for DCP's own collectives; all ranks are in it.
    Raises OSError on every rank when one cannot write, CheckpointError when it fails in another way.
    """
    writer = dcp.FileSystemWriter(folder, overwrite=True)
    writer.fs = _Files()
    try:
        dcp.save(dict(state), storage_writer=writer, process_group=group)
    except CheckpointException as failure:
        raise _first_cause(failure, f"{folder}: the state could not be written") from failure


def load_sharded(state: Mapping[str, Any], folder: Path) -> None:
    """Read `folder` into the tensors of `state`, for any number of ranks that wrote it. All ranks call.

    A part of the checkpoint that has no key in `state` at all (for example `ema/`) is skipped.
    Raises CheckpointError when names or sizes differ, or the index names anything that no checkpoint holds; OSError when
    a file cannot be read. Nothing in the folder is run as code.
    """
    reader = _Reader(folder)
    reader.fs = _Files()
    try:
        entries = reader.read_metadata().state_dict_metadata
        saved = {key: tuple(entry.size) for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        _check_fit(saved, {key: tuple(tensor.shape) for key, tensor in state.items()}, folder)
        dcp.load(dict(state), storage_reader=reader)
    except CheckpointException as failure:
        raise _first_cause(failure, f"{folder}: the state could not be read") from failure


def _check_fit(saved: Mapping[str, tuple], wanted: Mapping[str, tuple], folder: Path) -> None:
    parts = {key.split("/")[0] for key in wanted}
    faults = {
        "missing": [key for key in wanted if key not in saved],
        "unexpected": [key for key in saved if key not in wanted and key.split("/")[0] in parts],
        "of another size": [
            f"{key} ({saved[key]} saved, {wanted[key]} wanted)"
            for key in wanted
            if key in saved and saved[key] != wanted[key]
        ],
    }
    differences = "; ".join(f"{fault}: {_first_few(keys)}" for fault, keys in faults.items() if keys)
    if differences:
        raise CheckpointError(
            f"{folder}: the checkpoint does not fit this model: {differences}; allowed: exactly the tensors of the run that "
            "wrote it; resume with that run's config, or choose a new run_dir"
        )


def _first_few(keys: Iterable[str], shown: int = 3) -> str:
    listed = sorted(keys)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + rest


def _first_cause(failure: CheckpointException, what: str) -> Exception:
    """An OSError of any rank if there is one, because the caller has advice for full disks; else a CheckpointError."""
    causes = {rank: cause for rank, (cause, _) in sorted(failure.failures.items())}
    for cause in causes.values():
        if isinstance(cause, OSError):
            return OSError(cause.errno, cause.strerror, cause.filename)
    rank, cause = next(iter(causes.items()))
    return CheckpointError(f"{what}: rank {rank}: {type(cause).__name__}: {cause}; the run cannot go on from it")
