"""ClipEncoder: images and texts as vectors of one space, by CLIP or SigLIP of transformers.

Shapes: T frames, B texts, D numbers of a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from tools.clip_frames import sample_frames

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("torch", "transformers")
_WIDEST = 1024  # pixels of frames; models take 224 to 512, and the frames of a batch are in memory together
DEFAULT_MODEL = "openai/clip-vit-large-patch14"  # the one of LAION's aesthetic heads


class ClipEncoder:
    """The model of a folder or of the hub, on one device. Vectors have length 1.

    model: a folder as `save_pretrained` writes it, or a hub id. device: a platform of opensora, or auto for the fastest.
    Raises ConfigError where the model cannot be read, or the device is missing.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        from opensora.platforms import select

        self.device = select(None if device == "auto" else device).device()
        self.name = model
        network, self._images, self._texts = _read(model)
        self._network = network.eval().requires_grad_(False).to(self.device)

    def frames(self, frames: Sequence[Frames]) -> "Tensor":
        """[T, D] on the CPU for frames [H, W, 3] of any sizes."""
        import torch

        pixels = self._images(images=list(frames), return_tensors="pt", input_data_format="channels_last")[
            "pixel_values"
        ]
        with torch.inference_mode():
            return _unit(self._network.get_image_features(pixel_values=pixels.to(self.device)))

    def texts(self, texts: Sequence[str]) -> "Tensor":
        """[B, D] on the CPU; texts of more tokens than the model takes, 77 in CLIP, are cut."""
        import torch

        limit = self._network.config.text_config.max_position_embeddings
        tokens = self._texts(list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask") if name in tokens}
        with torch.inference_mode():
            return _unit(self._network.get_text_features(**inputs))

    def clips(self, rows: Sequence[Mapping[str, Any]], count: int) -> "list[Tensor | BadClip]":
        """For each row [T, D] of at most `count` frames that are spread over the clip, or why it cannot be used."""
        clips: list[list[Frames] | BadClip] = []
        for row in rows:
            try:
                clips.append(list(sample_frames(row, count, _WIDEST)))
            except BadClip as error:
                clips.append(error)
        every = [frame for clip in clips if not isinstance(clip, BadClip) for frame in clip]
        vectors = iter(self.frames(every) if every else ())
        return [clip if isinstance(clip, BadClip) else _take(vectors, len(clip)) for clip in clips]


def _take(vectors: "Iterator[Tensor]", count: int) -> "Tensor":
    import torch

    return torch.stack([next(vectors) for _ in range(count)])


def mean_vector(vectors: "Tensor") -> "Tensor":
    """[D] of length 1: the direction of the mean of [T, D]."""
    from torch.nn.functional import normalize

    return normalize(vectors.mean(0), dim=0)


def require_frames(frames: int, tool: str) -> None:
    """Raise ConfigError for a number of frames that a tool cannot sample."""
    if not 1 <= frames <= 256:
        raise ConfigError(f"{tool}: --frames {frames}; allowed: 1 to 256 frames for each clip; correct it")


def _unit(features: "Tensor") -> "Tensor":
    from torch.nn.functional import normalize

    vectors = getattr(features, "pooler_output", features)  # transformers 5 returns it within an object
    return normalize(vectors.float(), dim=-1).cpu()


def _read(model: str) -> tuple[Any, Any, Any]:
    """Network, image processor and tokenizer, from the hub where they are neither in a folder nor cached."""
    from safetensors import SafetensorError

    from opensora.models.hub import read_pretrained

    try:
        parts = read_pretrained(model, lambda local: _parts(model, local_files_only=local))
    # Raised by transformers for files that are missing, truncated or of another model; TypeError: no vocabulary.
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"--model {model}: cannot be read ({line}); a folder with config.json, weights, preprocessor_config.json and the "
            f"tokenizer's files is needed, or a hub id such as {DEFAULT_MODEL}; correct it, or fetch the model with "
            f"`hf download {model}`"
        ) from error
    if not all(hasattr(parts[0], name) for name in ("get_image_features", "get_text_features")):
        raise ConfigError(
            f"--model {model}: is a {type(parts[0]).__name__}, which has no vectors of images and texts in one space; a CLIP or "
            f"SigLIP model is needed, such as {DEFAULT_MODEL}"
        )
    return parts


def _parts(model: str, **options: Any) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    images = AutoImageProcessor.from_pretrained(
        model, use_fast=False, **options
    )  # the one that models were published with
    network, report = AutoModel.from_pretrained(model, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(
            f"{len(report['missing_keys'])} tensors are missing, such as {sorted(report['missing_keys'])[0]}"
        )
    return network, images, AutoTokenizer.from_pretrained(model, **options)
