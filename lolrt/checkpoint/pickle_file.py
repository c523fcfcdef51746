"""`.pt` and `.pth` files: tensors and plain containers only. Nothing in them is ever run, and nothing may unfold to more than the file."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from lolrt.checkpoint.mapped import mark
from lolrt.errors import CheckpointError

# What the pickle of a checkpoint of tensors asks for. torch's own list of harmless names is longer, and some of its entries
# (bytearray, torch.FloatTensor) make as many bytes as they are asked for.
HARMLESS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
}
MOST_PICKLE_BYTES = 64_000_000

# Tied weights are stored once, and a group may be another one's weights. More than so many times over is no model's.
MOST_SHARING = 4


def read_pickle(path: Path) -> dict[Any, Any]:
    """The dictionary in a file, its tensors mapped rather than read.

    Raises `lolrt.CheckpointError` for a file that is not there, is damaged, is compressed, names code, holds no dictionary, or whose
    tensors claim more than it stores.
    """
    try:
        _check(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it") from None
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no plain checkpoint ({reason}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a dictionary of tensors")
    groups = [loaded, *(value for value in loaded.values() if isinstance(value, dict))]
    tensors = [tensor for group in groups for tensor in group.values() if isinstance(tensor, torch.Tensor)]
    claimed = sum(tensor.nbytes for tensor in tensors)
    if claimed > MOST_SHARING * path.stat().st_size:
        raise CheckpointError(
            f"{path} is no plain checkpoint: its tensors repeat what it stores, and would unfold to {claimed:,} bytes; do not trust it"
        )
    for tensor in tensors:
        mark(tensor)
    return loaded


def _check(path: Path) -> None:
    """Raises unless the file is an archive as torch.save writes it, not compressed, whose pickle names tensors and nothing else."""
    if not zipfile.is_zipfile(path):
        path.stat()
        raise CheckpointError(
            f"{path} is damaged or no plain checkpoint (it is no zip archive, as torch.save has written since 1.6); fetch it again"
        )
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        unfolded = sum(record.file_size for record in records)
        if any(record.compress_type != zipfile.ZIP_STORED for record in records) or unfolded > path.stat().st_size:
            raise CheckpointError(
                f"{path} is compressed: it would unfold to {unfolded:,} bytes, and torch.save compresses nothing; do not trust it"
            )
        pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            raise CheckpointError(f"{path} is damaged or no plain checkpoint (it has no data.pkl of a credible size); fetch it again")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise CheckpointError(f"{path} is no plain checkpoint: its pickle has a {opcode.name}; do not trust it")
            if opcode.name == "GLOBAL" and argument not in HARMLESS:
                name = str(argument).replace(" ", ".")[:100]
                raise CheckpointError(f"{path} is no plain checkpoint: it asks for {name}, which is no tensor; nothing of it was run")
