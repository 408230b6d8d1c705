"""ImageTextEncoder: images and texts as vectors of one space, by CLIP or SigLIP of transformers.

Shapes: T frames, B texts, D numbers of a vector. Source: Radford et al. 2021, arXiv:2103.00020.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import Frames
from opensora.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEFAULT_MODEL = "openai/clip-vit-large-patch14"  # the one of LAION's aesthetic heads


class ImageTextEncoder:
    """The model of a folder or of the hub, on one device. Vectors have length 1.

    model: a folder as `save_pretrained` writes it, or a hub id. option: the flag or key that names it, for messages.
    Raises ConfigError where the model cannot be read.
    """

    def __init__(self, model: str, device: "torch.device | str", option: str = "--model") -> None:
        self.device = device
        self.name = model
        network, self._images, self._texts = _read(model, option)
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


def _unit(features: "Tensor") -> "Tensor":
    from torch.nn.functional import normalize

    vectors = getattr(features, "pooler_output", features)  # transformers 5 returns it within an object
    return normalize(vectors.float(), dim=-1).cpu()


def _read(model: str, option: str) -> tuple[Any, Any, Any]:
    """Network, image processor and tokenizer, from the hub where they are neither in a folder nor cached."""
    from safetensors import SafetensorError

    from opensora.models.hub import read_pretrained

    try:
        parts = read_pretrained(model, lambda local: _parts(model, local_files_only=local))
    # Raised by transformers for files that are missing, truncated or of another model; TypeError: no vocabulary.
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"{option} {model}: cannot be read ({line}); a folder with config.json, weights, preprocessor_config.json and the "
            f"tokenizer's files is needed, or a hub id such as {DEFAULT_MODEL}; correct it, or fetch the model with "
            f"`hf download {model}`"
        ) from error
    if not all(hasattr(parts[0], name) for name in ("get_image_features", "get_text_features")):
        raise ConfigError(
            f"{option} {model}: is a {type(parts[0]).__name__}, which has no vectors of images and texts in one space; a CLIP or "
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
