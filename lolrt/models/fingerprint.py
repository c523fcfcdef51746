"""Fingerprints of models: they depend on the weights, not on the names or places of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

# The number of values read from each tensor. To read all 11 GB of a text encoder would take longer than to encode a prompt.
SAMPLES = 64


def fingerprint(tensors: Mapping[str, Tensor]) -> hashlib._Hash:
    """A SHA-256 over names, dtypes, shapes and evenly spaced values of tensors. The caller can add more data to it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if not tensor.is_meta:  # a planned model has no values
            flat = tensor.detach().reshape(-1)
            samples = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].contiguous().cpu()
            digest.update(samples.view(torch.uint8).numpy().tobytes())
    return digest
