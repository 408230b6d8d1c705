"""Tiny text encoders with real tokenizers, written to a folder the way a downloaded model lies there."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

CAPTIONS = [
    "a red circle moves left over the grass",
    "two small boats cross a blue lake at sunset",
    "",
    "the camera slowly pans over a city at night while rain falls on the streets and people walk home",
]
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})


def tiny_bert(folder: Path, width: int = 32, longest: int = 64) -> Path:
    """A BERT of two layers with a word-piece vocabulary of whole words and letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *[f"##{letter}" for letter in letters]]
    vocabulary += [letter for letter in letters if letter not in WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=longest,
            ),
            add_pooling_layer=False,
        )
    model.save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, width: int = 32) -> Path:
    """A T5 encoder of two layers with a sentencepiece model trained on CAPTIONS."""
    import sentencepiece
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([caption for caption in CAPTIONS if caption] * 8),
        model_writer=pieces,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    config = T5Config(
        vocab_size=192,
        d_model=width,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5EncoderModel(config)
    model.save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, width: int = 32, longest: int = 77) -> Path:
    """The text half of a CLIP of two layers with a byte-pair vocabulary that spells words by their letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=48,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=longest,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPTextModel(config)
    model.save_pretrained(folder)
    return folder


def shared_bert() -> str:
    """The folder of one `tiny_bert` for all processes and sessions; the first one that needs it writes it."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"opensora-tests-{os.getuid()}", f"bert-{version}")
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        made = tiny_bert(Path(tempfile.mkdtemp(dir=folder.parent)))
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return str(folder)
