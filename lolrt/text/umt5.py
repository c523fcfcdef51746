"""UMT5, the text encoder of Wan's models. It runs through transformers, with weights in any published layout."""

from __future__ import annotations

import hashlib
import html
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint import ModelFiles, assign, read_component, to_diffusers
from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.mapped import check_whole_file
from lolrt.checkpoint.model_files import TOKENIZER
from lolrt.checkpoint.packed import Packed, give_back, stored
from lolrt.checkpoint.shapes import text_encoder_config, unfilled
from lolrt.checkpoint.tokenizer import read_tokenizer
from lolrt.errors import CheckpointError, Error, OutputError, PromptError, check_prompts
from lolrt.models.fingerprint import fingerprint
from lolrt.text.embeddings import read_embedding, write_embedding
from lolrt.text.encoder import TextEncoder

# The number of text rows that Wan's models were trained with.
MOST_TOKENS = 512


class UMT5Encoder(TextEncoder):
    """A UMT5 encoder and its tokenizer in memory.

    component: the weights. They run in the dtype of `encoder_dtype`, and stay mapped if the file has this dtype. tokenizer: a folder with
    its tokenizer.json; None if the file of the weights holds it. Raises `lolrt.CheckpointError` when these are invalid, and `lolrt.Error`
    if transformers or ftfy are not installed.
    """

    def __init__(self, component: Component, tokenizer: Path | None) -> None:
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
        self._source, self._tokenizer = component.source, _tokenizer(component, tokenizer)
        names = to_diffusers("text_encoder", component.tensors)
        tensors = {theirs: component.tensors[ours] for ours, both in names.items() for theirs in both}
        tensors |= {name: tensor for name, tensor in component.tensors.items() if name not in names}  # unexpected ones are errors
        self._model = assign(model, tensors, encoder_dtype(component), component.source, mapped=True)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Encodes prompts to one row per token, [1 .. 512, text_dim]. The zero rows that pad a prompt to 512 in Wan's models are left out.

        Raises `lolrt.PromptError` for a prompt of more tokens.
        """
        tokens = [self._tokenizer.encode(clean(prompt)).ids for prompt in prompts]
        for prompt, ids in zip(prompts, tokens, strict=True):
            if len(ids) > MOST_TOKENS:
                raise PromptError(f"the prompt {prompt[:40]!r}... has {len(ids)} tokens; the model takes {MOST_TOKENS}: shorten it")
        rows = [self._model(torch.tensor([ids], device="cpu")).last_hidden_state[0].clone() for ids in tokens]
        check_whole_file(self._source)
        return rows


def _transformers() -> Any:
    try:
        import ftfy  # noqa: F401 - used by `clean`
        import transformers
    except ImportError as error:
        raise Error(f"the UMT5 text encoder needs {error.name}: install it with pip install 'lolrt[umt5]'") from None
    return transformers


def _tokenizer(component: Component, folder: Path | None) -> Any:
    """The tokenizer, made from `read_tokenizer`. transformers' own loader could run code in the folder, and reads its other files."""
    import tokenizers

    values = read_tokenizer(component, folder)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the library has no exception type of its own
        source = folder / TOKENIZER if folder else f"what {component.source} holds"
        raise CheckpointError(f"{source} is no tokenizer that can be read ({str(error)[:200]}); fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def clean(prompt: str) -> str:
    """The text in the form that Wan's models expect: repaired Unicode, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def encoder_dtype(component: Component) -> torch.dtype:
    """The dtype that an encoder runs in: float32 if most of its values have 32 bits, otherwise bfloat16.

    Files in fp16 were made from Wan's bfloat16 weights, and hold the same values, except the smallest.
    """
    wide = sum(found.numel() for found in component.tensors.values() if not isinstance(found, Packed) and found.dtype.itemsize > 2)
    return torch.float32 if 2 * wide > sum(found.numel() for found in component.tensors.values()) else torch.bfloat16


def encoder_fingerprint(component: Component, tokenizer: Path | None) -> str:
    """The fingerprint of an encoder and its tokenizer together."""
    digest = fingerprint(stored(component.tensors))
    check_whole_file(component.source)
    digest.update(json.dumps(read_tokenizer(component, tokenizer)).encode())
    return digest.hexdigest()


class CachedUMT5(TextEncoder):
    """A UMT5 encoder that is in memory only while it encodes. It encodes no prompt twice, because embeddings are cached on disk.

    source: the path or the files of a model. tokenizer: as in `UMT5Encoder`. folder: the cache, with one file per embedding, named by a
    hash of the encoder, its tokenizer and the text. If an embedding cannot be saved, there is a warning, and the run goes on.
    """

    def __init__(self, source: Path | ModelFiles, tokenizer: Path | None, folder: Path) -> None:
        self._source, self._tokenizer, self._folder = source, tokenizer, folder
        self._fingerprint = encoder_fingerprint(read_component(source, "text_encoder"), tokenizer)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        _transformers()
        check_prompts(prompts)
        paths = [self._folder / f"{hashlib.sha256((self._fingerprint + clean(p)).encode()).hexdigest()}.safetensors" for p in prompts]
        rows = [read_embedding(path) for path in paths]
        missing = [i for i, found in enumerate(rows) if found is None]
        if missing:
            component = read_component(self._source, "text_encoder")
            encoded = dict(zip(missing, UMT5Encoder(component, self._tokenizer).encode([prompts[i] for i in missing]), strict=True))
            give_back(component.tensors.values())
            rows = [encoded.get(i, found) for i, found in enumerate(rows)]
            try:
                for i, embedding in encoded.items():
                    write_embedding(paths[i], embedding)
            except OutputError as error:
                warnings.warn(f"{error} for the cache with LOLRT_CACHE; until then the same text is encoded every time", stacklevel=2)
        return [found for found in rows if found is not None]
