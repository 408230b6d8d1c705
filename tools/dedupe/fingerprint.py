"""Fingerprints of clips, by which tools.dedupe.find finds those that show the same.

Run: python -m tools.dedupe.fingerprint clips.csv fingerprints.parquet --workers 8
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opensora.datasets.decode import Frames, Video
from opensora.datasets.missing_values import is_missing
from opensora.errors import ConfigError
from tools.clip_frames import clip_part, spread
from tools.runner import Row, run
from tools.score.bars import find_bars, gray_frame

if TYPE_CHECKING:
    from PIL import Image

PACKAGES = ("imagehash",)
_SIDE = 256  # pixels of the longer side to which frames are reduced first
_HASH_SIDE = 8  # the hash has 8 x 8 bits
_DCT_SIDE = 32  # pixels from which the hash is made
_FLAT = 2.0  # gray levels of standard deviation: a frame with less shows nothing, and its hash is noise
NOTHING = "0" * 16  # hash of a frame that shows nothing

# A hash's bits by frequency, the lowest first: these are the most robust, and the index compares bits in groups.
_BY_FREQUENCY = sorted(range(_HASH_SIDE**2), key=lambda bit: (sum(divmod(bit, _HASH_SIDE)), bit))


def fingerprint(row: Row, *, frames: int = 8, exact: bool = True) -> Row:
    """The row with frame_hash and perceptual_hash, and with the size, length and bit rate of the file where it has none.

    frames: number of frames, spread over the clip, whose perceptual hashes are made; equal for all that are compared
    exact: decode every frame for frame_hash; without it only the frames of the perceptual hash are read
    """
    if not 1 <= frames <= 64:
        raise ConfigError(f"fingerprint: --frames {frames}; allowed: 1 to 64; correct it")
    with Video(row["path"]) as video:
        info, bitrate = video.info, video.details().bitrate
        part = clip_part(row, info.num_frames)
        wanted = spread(part, frames)
        digest, samples = hashlib.blake2b(f"{info.height}x{info.width}".encode(), digest_size=16), []
        indices = part if exact else sorted(set(wanted))
        for index, pixels in zip(indices, video.frames(indices, None if exact else _SIDE)):
            if exact:
                digest.update(np.ascontiguousarray(pixels).data)
            samples += [reduced(pixels)] * wanted.count(index)
    measured = {
        "num_frames": len(part),
        "fps": round(info.fps, 4),
        "height": info.height,
        "width": info.width,
        "bitrate": bitrate,
    }
    hashes = {"frame_hash": digest.hexdigest() if exact else None, "perceptual_hash": perceptual_hash(samples)}
    return {**row, **{name: value for name, value in measured.items() if is_missing(row.get(name))}, **hashes}


def reduced(frame: Frames) -> Frames:
    """[H, W, 3] as gray [H, W] of at most 256 pixels on the longer side."""
    from PIL import Image

    image = Image.fromarray(gray_frame(frame))
    scale = _SIDE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    return np.asarray(image)


def perceptual_hash(frames: Sequence[Frames]) -> str:
    """16 hexadecimal digits for each gray frame [H, W]: ImageHash's phash of the picture within bars and borders.

    The bits are in order of frequency. A frame that shows nothing, as a black one, has zeros only.
    """
    from PIL import Image

    bars = find_bars(frames)
    return "".join(_hash(Image.fromarray(np.ascontiguousarray(bars.crop(frame, margin=1)))) for frame in frames)


def _hash(image: "Image.Image") -> str:
    import imagehash
    from PIL import Image

    small = image.resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.LANCZOS)
    if np.asarray(small).std() < _FLAT:
        return NOTHING
    bits = imagehash.phash(small, hash_size=_HASH_SIDE, highfreq_factor=_DCT_SIDE // _HASH_SIDE).hash
    return np.packbits(bits.flatten()[_BY_FREQUENCY]).tobytes().hex()


if __name__ == "__main__":
    run(fingerprint, packages=PACKAGES)
