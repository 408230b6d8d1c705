"""Weights that transformers reads: from a folder, the local hub cache or, where they are in neither, the hub."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_SECONDS = 5  # that the hub has for an answer


def read_pretrained(source: str, read: Callable[[bool], T]) -> T:
    """The result of `read(local_files_only)`: True first; where files are missing, and the hub answers, False.

    source: a folder or hub id. Raises OSError for a hub that cannot be reached, and whatever `read` raises.
    """
    with quiet_transformers():
        try:
            return read(True)
        except OSError:
            if Path(source).is_dir():
                raise
        _require_hub(source)
        return read(False)


def _require_hub(source: str) -> None:
    """Raise OSError where there is no way to the hub: huggingface_hub would try again for half a minute."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers, get_session

    try:
        url = hf_hub_url(source, "config.json")
    except HFValidationError:  # a path; transformers says so
        return
    try:
        get_session().head(url, headers=build_hf_headers(), timeout=_SECONDS)
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        host = "/".join(url.split("/")[:3])
        raise OSError(f"it is not in the local hub cache, and {host} cannot be reached") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and all but errors of transformers; its settings are restored afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
