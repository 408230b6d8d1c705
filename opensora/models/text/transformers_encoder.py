"""PretrainedEncoder: base class of text encoders from transformers.

Shapes: B captions, L = model_max_length tokens (padded), C = output_dim.
"""

import abc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError, WeightsError
from opensora.models.hub import read_pretrained
from opensora.models.read_weights import lfs_pointers
from opensora.models.text.lost_words import Cut
from opensora.types import EncodedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names for the width of the token states in configs of transformers.
WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")


class EncoderOutput(Protocol):
    """The output of an encoder of transformers; only those with a pooler have `pooler_output`."""

    last_hidden_state: Tensor  # [B, L, C]
    pooler_output: Tensor  # [B, C]


class PretrainedEncoder(abc.ABC):
    """A frozen text encoder. Building one reads config.json only; `load` reads the tokenizer and the weights.

    from_pretrained: a folder as `save_pretrained` writes it, or a hub id.
    model_max_length: tokens per caption; longer captions are cut, shorter ones padded.
    Raises ConfigError when config.json is not available locally or the encoder takes fewer tokens.
    """

    length_key = "model_max_length"  # the constructor argument for the number of tokens

    def __init__(self, from_pretrained: str, model_max_length: int = 120):
        if model_max_length < 1:
            raise ConfigError(
                f"text_encoder.{self.length_key}: {model_max_length}; a caption has at least 1 token; raise it"
            )
        self.from_pretrained = from_pretrained
        self.max_tokens = model_max_length
        self.output_dim = self.read_width()
        self.device = torch.device("cpu")
        self.dtype: torch.dtype | None = None  # None = as the weights file has it
        self.model: nn.Module | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def model_max_length(self) -> int:
        """Tokens per caption that the denoiser gets."""
        return self.max_tokens

    @property
    def denoiser_args(self) -> dict[str, Any]:
        """Constructor arguments of a denoiser that takes these captions."""
        return {
            "condition": "text",
            "caption_channels": self.output_dim,
            "model_max_length": self.model_max_length,
        }

    def read_width(self) -> int:
        """The width of the token states, from config.json. Raises ConfigError."""
        config = self.own_config()
        if config is None:
            raise ConfigError(
                f"text_encoder.from_pretrained: {self.from_pretrained!r} is not a folder with a config.json, and not a"
                " model in the local hub cache; a folder or a hub id is allowed; correct the path, or fetch the model"
                f" once with `hf download {self.from_pretrained}`"
            )
        longest = config.get("max_position_embeddings")
        if isinstance(longest, int) and self.max_tokens > longest:
            raise ConfigError(
                f"text_encoder.{self.length_key}: {self.max_tokens}; {self.from_pretrained} takes at most"
                f" {longest} tokens; lower it"
            )
        for key in WIDTH_KEYS:
            if isinstance(config.get(key), int):
                return int(config[key])
        raise ConfigError(
            f"text_encoder.from_pretrained: config.json of {self.from_pretrained} has none of {', '.join(WIDTH_KEYS)};"
            " one of them holds the width of the token states; give the folder of a text encoder"
        )

    def own_config(self) -> dict[str, Any] | None:
        """config.json, or the text encoder's part of it; None when it is not available locally."""
        return read_config(self.from_pretrained)

    @abc.abstractmethod
    def read_model(self, **options: object) -> tuple[nn.Module, dict[str, Any]]:
        """The transformers model whose forward gives `last_hidden_state`, and its loading report."""

    def load(self) -> Self:
        """Read tokenizer and weights, from the hub when they are neither in a folder nor cached.

        Raises WeightsError when files are missing, damaged, or lack tensors of the encoder.
        """
        from safetensors import SafetensorError

        # Raised by transformers for files that are missing, truncated or of another model; TypeError: no vocabulary.
        unreadable = (OSError, ValueError, RuntimeError, TypeError, SafetensorError)
        try:
            tokenizer, model, report = read_pretrained(self.from_pretrained, self._read)
        except unreadable as error:
            pointers = lfs_pointers(self.from_pretrained)
            if pointers:
                raise WeightsError(
                    f"text_encoder.from_pretrained: {self.from_pretrained}: {', '.join(pointers)} are Git LFS pointers, not the"
                    " files themselves; the files are needed; run `git lfs pull` there"
                ) from error
            raise WeightsError(
                f"text_encoder.from_pretrained: {self.from_pretrained} could not be read ({_first_line(error)}); a"
                " folder with config.json, weights and tokenizer files is needed; fetch it again or correct the path"
            ) from error
        # A pooler reduces the caption to one vector, which is not used here.
        missing = [name for name in report["missing_keys"] if "pooler" not in name]
        if missing:
            raise WeightsError(
                f"text_encoder.from_pretrained: {self.from_pretrained} lacks {len(missing)} of the encoder's tensors"
                f" ({', '.join(missing[:3])}, ...); all are needed; fetch the model again"
            )
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        return self.to(self.device, self.dtype)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Compute on `device` in `dtype` (None = unchanged); before `load` this is stored and applied then."""
        self.device = torch.device(device)
        self.dtype = dtype or self.dtype
        if self.model is not None:
            self.model.to(device=self.device, dtype=self.dtype)
        return self

    @staticmethod
    def normalize_caption(caption: str, **config: Any) -> str:
        """The caption as the tokenizer gets it; config: constructor arguments that affect it."""
        return caption

    def prepare(self, caption: str) -> str:
        """`normalize_caption` with this encoder's arguments."""
        return self.normalize_caption(caption)

    def cut(self, caption: str) -> Cut | None:
        """The words that are cut off a caption; None if it is not too long. Needs no weights."""
        text = self.prepare(caption)
        if text.isascii() and len(text) + 4 <= self.max_tokens:  # each letter a token, and those of begin and end
            return None
        if self.tokenizer is None:
            self.tokenizer = read_pretrained(self.from_pretrained, self._read_tokenizer)
        tokens = len(self.tokenizer(text, verbose=False)["input_ids"])
        if tokens <= self.max_tokens:
            return None
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        kept = max(0, self.max_tokens - (tokens - len(ids)))
        return Cut(tokens, self.max_tokens, self.tokenizer.decode(ids[kept:]))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedText:
        """The captions' token states; padding is masked from the other tokens."""
        if self.model is None or self.tokenizer is None:
            raise RuntimeError(f"{type(self).__name__}.encode: the weights are not read yet; call load() first")
        tokens = self.tokenizer(
            [self.prepare(caption) for caption in captions],
            max_length=self.max_tokens,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask_BL: Tensor = tokens["attention_mask"].to(self.device)
        return self.condition(
            self.model(input_ids=tokens["input_ids"].to(self.device), attention_mask=mask_BL), mask_BL
        )

    def condition(self, output: EncoderOutput, mask_BL: Tensor) -> EncodedText:
        """Token states [B, 1, L, C] and mask [B, L] from the model's output."""
        return EncodedText(output.last_hidden_state.unsqueeze(1), mask_BL)

    def _read(self, local_files_only: bool) -> tuple[Any, nn.Module, dict[str, Any]]:
        tokenizer = self._read_tokenizer(local_files_only)
        model, report = self.read_model(
            local_files_only=local_files_only, torch_dtype=self.dtype or "auto", output_loading_info=True
        )
        return tokenizer, model, report

    def _read_tokenizer(self, local_files_only: bool) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.from_pretrained, local_files_only=local_files_only)


def read_config(source: str) -> dict[str, Any] | None:
    """config.json of a folder or of a model in the local hub cache, without the network; None if there is none."""
    file: Path | None = Path(source) / "config.json"
    if not Path(source).is_dir():
        file = _cached(source)
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"text_encoder.from_pretrained: {file} is not JSON ({error}); a transformers config is needed; fetch it again"
        ) from error


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:  # a path with several slashes cannot be a hub id
        return None
    return Path(path) if isinstance(path, str) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
