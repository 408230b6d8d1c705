"""`transformers`: captions by a vision-language model of transformers, on this machine.

Any model that AutoModelForImageTextToText and AutoProcessor load, with a chat template: LLaVA, LLaVA-NeXT(-Video),
LLaVA-OneVision, InternVL, Qwen2-VL, Qwen2.5-VL, SmolVLM, ... For prompts of words alone also language models.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opensora.chat_client import Answer
from opensora.errors import ConfigError
from opensora.registry import CAPTIONERS
from tools.caption.chat_captioner import ChatCaptioner, Request, Result

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@CAPTIONERS.register_module(name="transformers")
class TransformersCaptioner(ChatCaptioner):
    """Loads the model once; answers are greedy, so that they are the same each time.

    from_pretrained: a folder as `save_pretrained` writes it, or a hub id.
    prompting: see tools.caption.prompting.Prompting.
    max_new_tokens: of an answer.
    batch_size: prompts that are answered at a time; more take more memory.
    device: as in training configs, for example cpu; None = the fastest here.
    dtype: "auto" = bf16 where the device has units for it, else fp32.
    generation: further arguments of `generate`, such as dict(repetition_penalty=1.1).
    chat_template: a Jinja text, for models that come without one.
    trust_remote_code: True runs Python code that lies with the weights; allow it for sources you trust.
    """

    def __init__(
        self,
        from_pretrained: str,
        prompting: Mapping[str, Any] | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 4,
        device: str | None = None,
        dtype: Dtype = "auto",
        generation: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(prompting)
        if max_new_tokens < 1 or batch_size < 1:
            raise ConfigError(
                f"transformers: max_new_tokens is {max_new_tokens}, batch_size {batch_size}; allowed: from 1; raise it"
            )
        self._source, self._batch_size = from_pretrained, batch_size
        self._template = chat_template
        self.label = f"transformers:{Path(from_pretrained).name if Path(from_pretrained).is_dir() else from_pretrained}"
        self.processor, self.model = _load(from_pretrained, device, dtype, trust_remote_code)
        self._reads_pictures = hasattr(self.processor, "image_processor")
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        tokenizer.padding_side = "left"  # answers begin at one place in all rows
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if chat_template is None and not _has_template(self.processor, tokenizer):
            raise ConfigError(
                f"transformers: {from_pretrained} has no chat template; one is needed to put pictures and words together; write "
                "chat_template=... with the Jinja text from the model's page"
            )
        self._tokenizer, self._accepted = tokenizer, inspect.signature(self.model.forward).parameters
        self._generation = {
            "do_sample": False,
            "num_beams": 1,
            "temperature": None,  # what a model's generation_config.json has for sampling would be warned of
            "top_p": None,
            "top_k": None,
            "max_new_tokens": max_new_tokens,
            "pad_token_id": tokenizer.pad_token_id,
            **(generation or {}),
        }

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        from opensora.models.hub import quiet_transformers

        results: dict[int, Result] = {}
        with quiet_transformers():
            for batch in _batches(requests, self._batch_size):
                answers = self._answer_batch([requests[number] for number in batch])
                results |= dict(zip(batch, answers, strict=True))
        return [results[number] for number in range(len(requests))]

    def _answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        import torch

        inputs = self._inputs(requests).to(self.model.device)
        for name, value in inputs.items():
            if name.startswith("pixel_values"):  # not the times of frames, which half precision would round
                inputs[name] = value.to(self.model.dtype)
        if "token_type_ids" not in self._accepted:  # some tokenizers write them for models that take none
            inputs.pop("token_type_ids", None)
        begin = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, **self._generation)[:, begin:]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Answer(text, self._has_ended(row)) for text, row in zip(texts, tokens, strict=True)]

    def _has_ended(self, tokens: "torch.Tensor") -> bool:
        """True if the model itself ended the answer [L]; False if its tokens ran out."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends, self._tokenizer.eos_token_id]
        return len(tokens) < self._generation["max_new_tokens"] or any(int(token) in ends for token in tokens)

    def _inputs(self, requests: Sequence[Request]) -> Any:
        """The processor's tensors for prompts of one kind."""
        first = requests[0]
        texts = [self._render(request) for request in requests]
        options: dict[str, Any] = {"text": texts, "padding": True, "return_tensors": "pt"}
        pictures = [request.pictures for request in requests if request.pictures is not None]
        if not pictures:
            return self.processor(**options)
        if not self._reads_pictures:
            raise ConfigError(
                f"transformers: {self._source} reads no pictures; a vision-language model is needed; choose one, or use this one "
                "as `refine`"
            )
        if not first.as_video:
            from PIL import Image

            images = [[Image.fromarray(picture) for picture in each] for each in pictures]
            return self.processor(images=images, **options)
        if not hasattr(self.processor, "video_processor"):
            raise ConfigError(
                f"transformers: {self._source} has no video input; allowed for it: prompting.layout 'images' or 'grid'; change it"
            )
        import torch

        videos = [torch.from_numpy(each).permute(0, 3, 1, 2) for each in pictures]
        details = [
            {"total_num_frames": len(each), "fps": request.fps, "frames_indices": list(range(len(each)))}
            for each, request in zip(pictures, requests)
        ]
        # The frames are chosen already; the processor is only informed of their rate.
        timing = {"do_sample_frames": False, "video_metadata": details, "fps": [request.fps for request in requests]}
        return self.processor(videos=videos, **timing, **options)

    def _render(self, request: Request) -> str:
        content: list[dict[str, Any]] = []
        if request.pictures is not None:
            content += [{"type": "video"}] if request.as_video else [{"type": "image"}] * len(request.pictures)
        content.append({"type": "text", "text": request.prompt})
        turns: list[dict[str, Any]] = []
        if request.system:
            turns.append({"role": "system", "content": [{"type": "text", "text": request.system}]})
        turns.append({"role": "user", "content": content})
        if not self._reads_pictures:  # templates of language models take plain text
            turns = [{**turn, "content": turn["content"][-1]["text"]} for turn in turns]
        extra = {"chat_template": self._template} if self._template is not None else {}
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **extra)


def _batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Numbers of requests that a processor takes together: all words, all pictures, or videos of one length."""
    kinds: dict[object, list[int]] = {}
    for number, request in enumerate(requests):
        words = request.pictures is None
        frames = len(request.pictures) if request.pictures is not None and request.as_video else 0
        kinds.setdefault((words, request.as_video, frames), []).append(number)
    for numbers in kinds.values():
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))


def _has_template(processor: Any, tokenizer: Any) -> bool:
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))


def _load(source: str, device: str | None, dtype: Dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """The processor (of a language model its tokenizer) and the model. Raises ConfigError."""
    import torch
    from safetensors import SafetensorError

    from opensora.models.hub import read_pretrained
    from opensora.platforms import select

    platform = select(device)
    words = platform.choose_dtype("auto") if dtype == "auto" else dtype
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[words]
    unreadable = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)
    try:
        processor, model, report = read_pretrained(
            source, lambda local: _read(source, kind, trust_remote_code, local_files_only=local)
        )
    except ImportError as error:
        raise ConfigError(f"transformers: {source} needs a package ({_first_line(error)}); install it") from error
    except unreadable as error:
        what = "in this folder" if Path(source).is_dir() else "by this name of the hub"
        raise ConfigError(
            f"transformers: {source} could not be read, {what} ({_first_line(error)}); config.json, weights, tokenizer and "
            f"processor files are needed; correct the path, or fetch the model with `hf download {source}`"
        ) from error
    missing = report["missing_keys"]
    if missing:
        raise ConfigError(
            f"transformers: {source} lacks {len(missing)} of the model's tensors ({', '.join(sorted(missing)[:3])}, ...); all "
            "are needed; fetch the model again"
        )
    return processor, model.eval().requires_grad_(False).to(platform.device())


def _read(
    source: str, dtype: "torch.dtype", trust_remote_code: bool, local_files_only: bool
) -> tuple[Any, Any, dict[str, Any]]:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    options = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    config = AutoConfig.from_pretrained(source, **options)
    reads_pictures = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (
        "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    )
    processor_class: Any = AutoProcessor if reads_pictures else AutoTokenizer
    model_class: Any = AutoModelForImageTextToText if reads_pictures else AutoModelForCausalLM
    processor = processor_class.from_pretrained(source, **options)
    model, report = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    return processor, model, report


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
