"""Aesthetic score of clips: CLIP's vectors of a few frames and a head that was trained on ratings of pictures.

Run: python -m tools.score.aesthetic clips.csv scored.csv --head sac+logos+ava1-l14-linearMSE.pth

The heads are LAION's: the improved aesthetic predictor (https://github.com/christophschuhmann/improved-aesthetic-predictor)
and the first one, a single linear layer (https://github.com/LAION-AI/aesthetic-predictor). Their scores lie about 1 to 10.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.errors import BadClip, ConfigError
from tools.runner import Row, run
from tools.score.clip import DEFAULT_MODEL, PACKAGES, ClipEncoder, require_frames

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYERS = (0, 2, 4, 6, 7)  # of nn.Sequential; 1, 3 and 5 are dropout, and there is no activation between them


class Aesthetic:
    """Each row with `aes`: the mean score of its frames.

    head: file of the head's weights, .pth or .safetensors
    model: folder or hub id of the CLIP that the head was trained on
    device: cpu, a platform of opensora, or auto for the fastest
    frames: number of frames, spread over the clip
    """

    def __init__(self, *, head: str, model: str = DEFAULT_MODEL, device: str = "auto", frames: int = 4) -> None:
        require_frames(frames, "aesthetic")
        self._head = read_head(head)
        self._encoder = ClipEncoder(model, device)
        self._frames, self._checked = frames, False

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        import torch

        clips = self._encoder.clips(rows, self._frames)
        results: list[Row | BadClip] = []
        with torch.inference_mode():
            for row, vectors in zip(rows, clips):
                if isinstance(vectors, BadClip):
                    results.append(vectors)
                else:
                    results.append({**row, "aes": round(float(self._score(vectors)), 4)})
        return results

    def _score(self, vectors: "Tensor") -> "Tensor":
        width = next(self._head.parameters()).shape[1]
        if vectors.shape[1] != width:
            raise ConfigError(
                f"--head: takes vectors of {width} numbers, and {self._encoder.name} makes {vectors.shape[1]}; choose the model "
                f"that the head was trained on (768 numbers: {DEFAULT_MODEL})"
            )
        return self._head(vectors).mean()


def read_head(path: str) -> "nn.Module":
    """A head of one linear layer or of LAION's five. Raises ConfigError for any other file."""
    from torch import nn

    weights = _read_weights(path)
    layers: dict[int, dict[str, Any]] = {}
    for name, tensor in weights.items():
        *prefix, kind = name.split(".")
        number = int(prefix[-1]) if prefix and prefix[-1].isdigit() else 0
        layers.setdefault(number, {})[kind] = tensor
    shapes = [
        tuple(layers[number]["weight"].shape) for number in sorted(layers) if {*layers[number]} == {"weight", "bias"}
    ]
    fits = all(len(shape) == 2 for shape in shapes) and all(one[0] == next_[1] for one, next_ in pairwise(shapes))
    if len(shapes) != len(layers) or tuple(sorted(layers)) not in ((0,), _LAYERS) or not fits or shapes[-1][0] != 1:
        raise ConfigError(
            f"--head {path}: found the tensors {', '.join(list(weights)[:12])}; weight and bias of one linear layer, or of the "
            f"layers {', '.join(map(str, _LAYERS))} of LAION's predictor are needed; choose such a file"
        )
    head = nn.Sequential(*(nn.Linear(shape[1], shape[0]) for shape in shapes))
    state = {
        f"{place}.{kind}": layers[number][kind]
        for place, number in enumerate(sorted(layers))
        for kind in layers[number]
    }
    head.load_state_dict(state)
    return head.float().eval().requires_grad_(False)


def _read_weights(path: str) -> Mapping[str, "Tensor"]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ConfigError(
            f"--head {path}: no such file; a .pth or .safetensors file of a head is needed, for example "
            "sac+logos+ava1-l14-linearMSE.pth from https://github.com/christophschuhmann/improved-aesthetic-predictor"
        )
    try:
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--head {path}: cannot be read ({line}); fetch it again") from error
    if (
        not isinstance(weights, Mapping)
        or not weights
        or not all(isinstance(each, torch.Tensor) for each in weights.values())
    ):
        raise ConfigError(
            f"--head {path}: holds no named tensors; a state dict of a head is needed; choose another file"
        )
    return weights


if __name__ == "__main__":
    run(Aesthetic, batch_size=8, packages=PACKAGES)
