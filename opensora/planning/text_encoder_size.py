"""The size of a text encoder without loading it: from the headers of its weight files, or from the published T5 sizes."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from opensora.interfaces import TextEncoder

# d_model, d_ff, layers, heads, width of a head, products in the perceptron; Raffel et al. 2020, arXiv:1910.10683, sec. 3.7,
# and the released config.json. The vocabulary has 32,128 rows.
_T5 = {
    **{f"{o}t5-small": (512, 2048, 6, 8, 64, 2) for o in ("", "google-t5/")},
    **{f"{o}t5-base": (768, 3072, 12, 12, 64, 2) for o in ("", "google-t5/")},
    **{f"{o}t5-large": (1024, 4096, 24, 16, 64, 2) for o in ("", "google-t5/")},
    **{f"{o}t5-3b": (1024, 16384, 24, 32, 128, 2) for o in ("", "google-t5/")},
    **{f"{o}t5-11b": (1024, 65536, 24, 128, 128, 2) for o in ("", "google-t5/")},
    **{f"google/{k}-small": (512, 1024, 8, 6, 64, 3) for k in ("t5-v1_1", "flan-t5")},
    **{f"google/{k}-base": (768, 2048, 12, 12, 64, 3) for k in ("t5-v1_1", "flan-t5")},
    **{f"google/{k}-large": (1024, 2816, 24, 16, 64, 3) for k in ("t5-v1_1", "flan-t5")},
    **{f"google/{k}-xl": (2048, 5120, 24, 32, 64, 3) for k in ("t5-v1_1", "flan-t5")},
    **{f"google/{k}-xxl": (4096, 10240, 24, 64, 64, 3) for k in ("t5-v1_1", "flan-t5")},
    "DeepFloyd/t5-v1_1-xxl": (4096, 10240, 24, 64, 64, 3),
}
_VOCABULARY, _BUCKETS = 32128, 32


def text_parameters(encoder: TextEncoder) -> tuple[int, int] | None:
    """(parameters, those of matrices that each token is multiplied with); None when they are unknown.

    encoder: one of TEXT_ENCODERS, not loaded. Class labels need none.
    """
    source = getattr(encoder, "from_pretrained", None)
    if source is None:
        return 0, 0
    shapes = [shape for file in _files(source) for shape in _shapes(file)]
    if shapes:
        tables = max(prod(shape) for shape in shapes if len(shape) == 2)  # of words
        return sum(map(prod, shapes)), sum(map(prod, shapes)) - tables
    if source not in _T5:
        return None
    width, inner, layers, heads, head, products = _T5[source]
    matrices = layers * (4 * width * heads * head + products * width * inner)
    rest = _VOCABULARY * width + _BUCKETS * heads + (2 * layers + 1) * width
    return matrices + rest, matrices


def _files(source: str) -> list[Path]:
    return sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []


def _shapes(file: Path) -> Iterator[list[int]]:
    """Shapes of the tensors in a safetensors file: 8 bytes hold the length of the JSON header that follows."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    yield from (entry["shape"] for name, entry in header.items() if name != "__metadata__")
