from pathlib import Path

import pytest

from opensora.datasets.decode import probe
from opensora.errors import BadClip


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_not_called_damaged(tmp_path: Path, brand: bytes) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(200))
    with pytest.raises(BadClip, match=r"a\.heic: is a HEIC picture, which is not read; convert it to jpg or png"):
        probe(str(path))
