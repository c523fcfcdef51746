"""Tells models apart by what is in them, wherever their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

# Of each tensor, so many values are looked at: reading all 11 GB of a text encoder would take longer than encoding.
SAMPLES = 64


def fingerprint(tensors: Mapping[str, Tensor]) -> hashlib._Hash:
    """A SHA-256 over names, dtypes, shapes and evenly spaced values of some tensors, to which more can be added."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if not tensor.is_meta:  # there are no values in memory that is only planned
            flat = tensor.detach().reshape(-1)
            samples = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].contiguous().cpu()
            digest.update(samples.view(torch.uint8).numpy().tobytes())
    return digest
