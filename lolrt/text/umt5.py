"""UMT5, the text encoder of Wan's models, run by transformers on weights of any published layout."""

from __future__ import annotations

import hashlib
import html
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint import ModelFiles, assign, read_component, to_diffusers
from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.shapes import text_encoder_config, unfilled
from lolrt.errors import CheckpointError, Error, OutputError
from lolrt.models.fingerprint import fingerprint
from lolrt.text.embeddings import read_embedding, write_embedding
from lolrt.text.encoder import TextEncoder

# Rows of text that Wan's models were trained with.
MOST_TOKENS = 512


class UMT5Encoder(TextEncoder):
    """A UMT5 encoder and its tokenizer in memory.

    component: the weights; they are used in the file's dtype, mapped. tokenizer: the folder of its tokenizer. Raises
    `lolrt.CheckpointError` when these are not what they should be, and `lolrt.Error` where transformers or ftfy are not installed.
    """

    def __init__(self, component: Component, tokenizer: Path) -> None:
        transformers = _transformers()
        config = text_encoder_config(component)
        with unfilled():
            model = transformers.UMT5EncoderModel(
                transformers.UMT5Config(
                    vocab_size=config.vocab_size,
                    d_model=config.dim,
                    d_kv=config.attention_dim // config.num_heads,
                    d_ff=config.ffn_dim,
                    num_layers=config.num_layers,
                    num_heads=config.num_heads,
                    relative_attention_num_buckets=config.num_buckets,
                    feed_forward_proj="gated-gelu",
                )
            )
        names = to_diffusers("text_encoder", component.tensors)
        tensors = {theirs: component.tensors[ours] for ours, both in names.items() for theirs in both}
        tensors |= {name: tensor for name, tensor in component.tensors.items() if name not in names}  # an unexpected one is an error
        dtype = torch.bfloat16 if all(tensor.dtype == torch.bfloat16 for tensor in tensors.values()) else torch.float32
        self._model = assign(model, tensors, dtype, component.source)
        self._tokenizer = _read_tokenizer(tokenizer)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The rows of each prompt's tokens, [1 .. 512, text_dim]; those that pad it up to 512 in Wan's models are zeros, and left out."""
        rows = []
        for prompt in prompts:
            tokens = self._tokenizer(clean(prompt), truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
            rows.append(self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state[0].clone())
        return rows


def _transformers() -> Any:
    try:
        import ftfy  # noqa: F401 - used by `clean`
        import transformers
    except ImportError as error:
        raise Error(f"the UMT5 text encoder needs {error.name}: install it with pip install 'lolrt[umt5]'") from None
    return transformers


def _read_tokenizer(folder: Path) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{folder} holds no tokenizer that transformers can read ({reason})") from error


def clean(prompt: str) -> str:
    """The text that Wan's models are given: mended Unicode, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def encoder_fingerprint(component: Component, tokenizer: Path) -> str:
    """The fingerprint of an encoder and its tokenizer together."""
    digest = fingerprint(component.tensors)
    for path in sorted(tokenizer.glob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class CachedUMT5(TextEncoder):
    """A UMT5 encoder that is in memory only while it encodes, and that encodes no prompt twice: embeddings are kept on disk.

    source: a model's path or files; tokenizer: the folder of its tokenizer; folder: of the cache, one file an embedding, named by
    what went into it: the encoder, its tokenizer, and the text. Where an embedding cannot be kept, a warning says so, and the run goes on.
    """

    def __init__(self, source: Path | ModelFiles, tokenizer: Path, folder: Path) -> None:
        self._source, self._tokenizer, self._folder = source, tokenizer, folder
        self._fingerprint = encoder_fingerprint(read_component(source, "text_encoder"), tokenizer)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        _transformers()
        paths = [self._folder / f"{hashlib.sha256((self._fingerprint + clean(p)).encode()).hexdigest()}.safetensors" for p in prompts]
        rows = [read_embedding(path) for path in paths]
        missing = [i for i, found in enumerate(rows) if found is None]
        if missing:
            encoder = UMT5Encoder(read_component(self._source, "text_encoder"), self._tokenizer)
            encoded = dict(zip(missing, encoder.encode([prompts[i] for i in missing]), strict=True))
            rows = [encoded.get(i, found) for i, found in enumerate(rows)]
            try:
                for i, embedding in encoded.items():
                    write_embedding(paths[i], embedding)
            except OutputError as error:
                warnings.warn(f"{error} for the cache with LOLRT_CACHE; until then the same text is encoded every time", stacklevel=2)
        return [found for found in rows if found is not None]
