"""Lengths of clips that an autoencoder codes without loss of a frame."""

from collections.abc import Iterable

from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder

_SEARCHED = 1024  # frames above the length, more than any autoencoder codes together


def require_frame_counts(vae: Autoencoder, lengths: Iterable[tuple[str, int]], where: str) -> None:
    """Raise ConfigError that names every length the autoencoder would shorten, with the nearest ones that it holds.

    lengths: (key, frames) of the clips of a run. where: config or command line, for the message.
    """
    wrong = [(key, frames) for key, frames in dict.fromkeys(lengths) if not vae.holds_frames(frames)]
    if not wrong:
        return
    parts = [f"{key}: found {n}; allowed: {' or '.join(map(str, nearest_frame_counts(vae, n)))}" for key, n in wrong]
    raise ConfigError(
        f"{where}: {', '.join(parts)} frames, which {type(vae).__name__} holds without loss of the last ones; "
        f"set {'one of them' if len(wrong) == 1 else 'them'}"
    )


def nearest_frame_counts(vae: Autoencoder, num_frames: int) -> list[int]:
    """The numbers of frames next to `num_frames` that the autoencoder holds: below it, and above it."""
    below = (n for n in range(num_frames - 1, 0, -1) if vae.holds_frames(n))
    above = (n for n in range(num_frames + 1, num_frames + _SEARCHED) if vae.holds_frames(n))
    return [n for n in (next(below, None), next(above, None)) if n is not None]
