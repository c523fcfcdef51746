"""Embeddings of prompts on disk: files that replace a text encoder, and a cache that avoids running it again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint.mapped import check_whole_file
from lolrt.checkpoint.safetensors_file import read_all, write_tensors
from lolrt.errors import CheckpointError, PromptError, check_prompts
from lolrt.files import replaced
from lolrt.text.encoder import TextEncoder

# The entry of a file's metadata that lists its prompts; the embedding of prompt i is the tensor of that name.
PROMPTS = "lolrt.prompts"

# The entry of a file's metadata with its checksum.
DIGEST = "lolrt.sha256"


class EmbeddingFile(TextEncoder):
    """A text encoder that reads embeddings from a file of `write_embeddings`."""

    def __init__(self, path: str | Path) -> None:
        """Reads all embeddings of the file. Raises `lolrt.CheckpointError` when it is not a file of embeddings."""
        try:
            tensors, metadata = _read(Path(path))
            self._rows = {prompt: tensors[str(i)] for i, prompt in enumerate(json.loads(metadata[PROMPTS]))}
        except (CheckpointError, KeyError, ValueError, TypeError) as error:
            message = f"{path} is no file of embeddings that lolrt encode wrote ({error}); write it anew with lolrt encode"
            raise CheckpointError(message) from error

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The embedding of each prompt, [text_tokens, text_dim]. Raises `lolrt.PromptError` for one that is not in the file."""
        check_prompts(prompts)
        unknown = [prompt for prompt in prompts if prompt not in self._rows]
        if unknown:
            known = ", ".join(map(repr, self._rows))
            raise PromptError(f"there is no embedding of {unknown[0]!r}, only of {known}; add it with lolrt encode")
        return [self._rows[prompt] for prompt in prompts]


def write_embeddings(path: str | Path, rows: Mapping[str, Tensor]) -> None:
    """Writes embeddings [text_tokens, text_dim] by prompt to one file. Raises `lolrt.OutputError`."""
    _write(Path(path), {str(i): tensor for i, tensor in enumerate(rows.values())}, {PROMPTS: json.dumps(list(rows))})


def cache_folder() -> Path:
    """The folder of cached embeddings: $LOLRT_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOLRT_CACHE") or Path(base, "lolrt")) / "text"


def read_embedding(path: Path) -> Tensor | None:
    """The embedding in a file of the cache; None if the file does not exist or its checksum is wrong."""
    try:
        return _read(path)[0]["rows"]
    except (CheckpointError, KeyError):
        return None


def write_embedding(path: Path, rows: Tensor) -> None:
    """Writes one embedding to a file of the cache. Raises `lolrt.OutputError`."""
    _write(path, {"rows": rows}, {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the prompts, and of each tensor's dtype, shape and bytes in the order of their names."""
    digest = hashlib.sha256(metadata.get(PROMPTS, "").encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of the tensors, and the metadata. Raises CheckpointError, and KeyError for a file without a checksum."""
    mapped, metadata = read_all(path)
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    check_whole_file(path)
    if metadata[DIGEST] != _digest(tensors, metadata):
        raise CheckpointError("its contents are not those of its checksum: the file is damaged")
    return tensors, metadata


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata = {**metadata, DIGEST: _digest(tensors, metadata)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with replaced(path) as partial:
        write_tensors(partial, layout, tensors.__getitem__, metadata)
