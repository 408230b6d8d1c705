from pathlib import Path
from typing import Any

import pytest

from opensora.run_paths import Origin, change_paths, local_paths, run_of_weights

CONFIG: dict[str, Any] = {
    "run_dir": "runs/a",
    "load": None,
    "vae": {"type": "x", "from_pretrained": "parts/vae", "spatial": {"from_pretrained": "owner/name"}},
    "perceptual": {"weights": ["a.pth", "b.pth"]},
    "text_encoder": {"names": ["cat", "dog"]},
    "dataset": {"data_path": "clips.csv", "image_size": (16, 16)},
    "preview_prompts": ["~ waves"],
}


def test_paths_at_any_depth_are_changed_and_nothing_else() -> None:
    changed = change_paths(CONFIG, ("run_dir", "load"), lambda key, path: f"{key}={path}")
    assert changed == {
        "run_dir": "run_dir=runs/a",
        "load": None,
        "vae": {
            "type": "x",
            "from_pretrained": "vae.from_pretrained=parts/vae",
            "spatial": {"from_pretrained": "vae.spatial.from_pretrained=owner/name"},
        },
        "perceptual": {"weights": ["perceptual.weights=a.pth", "perceptual.weights=b.pth"]},
        "text_encoder": {"names": ["cat", "dog"]},
        "dataset": {"data_path": "dataset.data_path=clips.csv", "image_size": (16, 16)},
        "preview_prompts": ["~ waves"],
    }
    assert CONFIG["run_dir"] == "runs/a"


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """Of a run in old/runs/a, started in old."""
    for folder in ("old/parts/vae", "old/runs/a", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    return Origin.here("runs/a", CONFIG)


def test_an_origin_survives_json(origin: Origin, tmp_path: Path) -> None:
    assert origin == Origin(str(tmp_path / "old"), str(tmp_path / "old/runs/a"), ("vae.from_pretrained",))
    assert Origin.of(origin.record()) == origin
    assert Origin.of(None) is None
    assert local_paths(CONFIG) == ["vae.from_pretrained"]


def test_paths_are_as_written_where_nothing_moved(origin: Origin) -> None:
    assert origin.locate("parts/vae", "runs/a") == "parts/vae"
    assert origin.locate("owner/name", "runs/a") is None


def test_paths_of_another_working_directory(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert origin.locate("parts/vae", "../old/runs/a") == str(tmp_path / "old/parts/vae")
    (tmp_path / "elsewhere/parts/vae").mkdir(parents=True)  # of the same name, and not what the run was trained with
    assert origin.locate("parts/vae", "../old/runs/a") == str(tmp_path / "old/parts/vae")


def test_paths_of_a_run_that_was_moved(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert origin.locate("parts/vae", tmp_path / "new/runs/a") == str(tmp_path / "new/parts/vae")
    absolute = str(tmp_path / "old/parts/vae")
    assert origin.locate(absolute, tmp_path / "new/runs/a") == str(tmp_path / "new/parts/vae")
    assert origin.locate("parts/vae", None) is None
    (tmp_path / "elsewhere/parts/vae").mkdir(parents=True)
    assert origin.locate("parts/vae", None) == "parts/vae"


def test_the_run_of_weights(tmp_path: Path) -> None:
    assert run_of_weights(tmp_path / "run/checkpoints/step-00000001/weights/ema") == tmp_path / "run"
    assert run_of_weights(tmp_path / "exported/model") is None
