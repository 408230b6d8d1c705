"""`t5`: the encoder of T5, the text encoder of Open-Sora's released models.

Source: Raffel et al. 2020, arXiv:1910.10683; the weights of the released models are T5 v1.1-XXL.
"""

from typing import Any

from torch import nn

from opensora.models.text.cleaning import preprocess
from opensora.models.text.transformers_encoder import PretrainedEncoder, read_config
from opensora.registry import TEXT_ENCODERS

_V1 = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024}
_V1_1 = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
# d_model of published models, so that a config can be checked before a download.
KNOWN_WIDTHS = {
    **{f"{owner}t5-{size}": width for owner in ("", "google-t5/") for size, width in _V1.items()},
    **{f"google/t5-v1_1-{size}": width for size, width in _V1_1.items()},
    **{f"google/flan-t5-{size}": width for size, width in _V1_1.items()},
    "DeepFloyd/t5-v1_1-xxl": 4096,
}


@TEXT_ENCODERS.register_module(name="t5")
class T5Encoder(PretrainedEncoder):
    """Token states of a T5 encoder; an empty caption has one token, the end of sentence.

    from_pretrained: a folder or hub id of any T5.
    model_max_length: 120 in Open-Sora 1.0, 200 in 1.1, 300 in 1.2 and 1.3.
    use_text_preprocessing: clean captions by the rules of `cleaning`; otherwise they are lowercased and stripped.
    """

    def __init__(
        self,
        from_pretrained: str = "DeepFloyd/t5-v1_1-xxl",
        model_max_length: int = 120,
        use_text_preprocessing: bool = True,
    ):
        super().__init__(from_pretrained, model_max_length)
        self.use_text_preprocessing = use_text_preprocessing

    def read_width(self) -> int:
        if self.from_pretrained in KNOWN_WIDTHS and read_config(self.from_pretrained) is None:
            return KNOWN_WIDTHS[self.from_pretrained]
        return super().read_width()

    def read_model(self, **options: object) -> tuple[nn.Module, dict[str, Any]]:
        from transformers import T5EncoderModel

        return T5EncoderModel.from_pretrained(self.from_pretrained, **options)

    @staticmethod
    def removes_words(use_text_preprocessing: bool = True, **config: object) -> bool:
        """True if cleaning can remove words."""
        return use_text_preprocessing

    @staticmethod
    def normalize_caption(caption: str, use_text_preprocessing: bool = True, **config: object) -> str:
        return preprocess(caption, use_text_preprocessing)

    def prepare(self, caption: str) -> str:
        return self.normalize_caption(caption, self.use_text_preprocessing)
