"""Snapshots: the whole state of a session, with a description, in one file. Writing is atomic: the file is complete or does not exist.

A snapshot is a safetensors file. Its metadata holds a description as JSON: model, config, prompt, and data that the saving program added.
Every tensor and the description have a checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lolrt.checkpoint.safetensors_file import write_tensors
from lolrt.errors import CheckpointError, Error, printable
from lolrt.files import replaced

SnapshotKind = Literal["full", "light"]

# The version of the file format. A reader refuses all other versions.
FORMAT = 1
_DESCRIPTION, _CHECKSUMS = "lolrt.snapshot", "lolrt.checksums"


@dataclass(frozen=True)
class Snapshot:
    """The state of a session between two chunks. A *full* snapshot holds the pages of the KV cache, and the session goes on with the same
    bits. A *light* one holds the latents of the window instead; the pages are made again from them."""

    model: dict[str, Any]
    """The model of the session: fingerprint of the DiT, dtype, device type, latent height and width, description of the VAE."""
    config: dict[str, Any]
    """`lolrt.session.config.StreamConfig`, plain."""
    tensors: dict[str, Tensor]
    kind: SnapshotKind = "full"
    prompt: str | None = None
    """The text of the prompt, if the stream was given one."""
    run: dict[str, Any] = field(default_factory=dict)
    """Data of the program that saved it, such as the length of its video."""

    @property
    def next_frame(self) -> int:
        """The number of the next latent frame."""
        return int(self.tensors["next_frame"])

    def plain(self) -> dict[str, Any]:
        """The description, as plain values for JSON."""
        return {
            "kind": self.kind, "format": FORMAT, "tensors": len(self.tensors), "bytes": sum(x.nbytes for x in self.tensors.values()),
            "next_frame": self.next_frame, "video_frame": (self.run.get("position") or {}).get("frames"), "prompt": self.prompt,
            "model": self.model, "config": self.config,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The description, as lines of text for people."""
        facts = self.plain()
        video = facts["video_frame"]
        rows = {
            "snapshot": f"{self.kind}, format {FORMAT}, {facts['tensors']} tensors, {facts['bytes'] / 2**20:.1f} MiB, checksums right",
            "goes on at": f"latent frame {self.next_frame}" + (f", video frame {video}" if video is not None else ""),
            "prompt": "" if self.prompt is None else printable(self.prompt),
            **{name: f"{value}" for name, value in self.model.items()},
            **{name: " ".join(f"{key}={value}".lstrip("=") for key, value in _flat(part).items()) for name, part in self.config.items()},
        }
        return [f"{name:13}{printable(text)}" for name, text in rows.items() if text]

    def write(self, path: str | Path) -> None:
        """Writes a file beside `path` and renames it, with fsync for both. A kill at any moment leaves the old file or the new one.

        Raises `lolrt.OutputError`; the old file is then unchanged.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        fields = "model", "config", "kind", "prompt", "run"
        text = json.dumps({"format": FORMAT, **{name: getattr(self, name) for name in fields}}, sort_keys=True)
        checksums = {_DESCRIPTION: zlib.crc32(text.encode()), **checksums_of(tensors)}
        metadata = {_DESCRIPTION: text, _CHECKSUMS: json.dumps(checksums, sort_keys=True)}
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with replaced(Path(path)) as partial:
            write_tensors(partial, layout, tensors.__getitem__, metadata)

    @staticmethod
    def read(path: str | Path) -> Snapshot:
        """Reads a snapshot. Raises `lolrt.CheckpointError` if the file is not a snapshot, is damaged, or has another format."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no snapshot of a stream ({error})") from error
        if _DESCRIPTION not in metadata:
            raise CheckpointError(f"{path} is a safetensors file and no snapshot of a stream: save one with stream.save or --save-every")
        try:
            text, checksums = metadata[_DESCRIPTION], json.loads(metadata[_CHECKSUMS])
            described = json.loads(text)
            found = described.pop("format")
            if not isinstance(checksums, dict):
                raise TypeError("its checksums are no table")
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is a damaged snapshot ({error!r}): take an earlier one") from error
        if found != FORMAT:
            raise CheckpointError(f"{path} is a snapshot of format {found!r}, not {FORMAT}: resume it with the lolrt that saved it")
        if wrong := differing({_DESCRIPTION: zlib.crc32(text.encode()), **checksums_of(tensors)}, checksums):
            raise CheckpointError(f"{path} is a damaged snapshot: {wrong} are not what was saved; take an earlier one")
        try:
            return Snapshot(tensors=tensors, **described)
        except TypeError as error:
            raise CheckpointError(f"{path} is a damaged snapshot ({error}): take an earlier one") from error


def is_snapshot(path: str | Path) -> bool:
    """Whether the metadata of a file says that it is a snapshot. Only `Snapshot.read` checks that it is a good one."""
    try:
        with safe_open(path, framework="pt") as file:
            return _DESCRIPTION in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return False


def _flat(part: Any) -> dict[str, Any]:
    """The fields of a plain config, nested ones under dotted names."""
    if not isinstance(part, dict):
        return {"": part}
    return {f"{name}.{key}".rstrip("."): value for name, inner in part.items() for key, value in _flat(inner).items()}


def checksum(name: str, tensor: Tensor) -> int:
    """CRC-32 of a tensor's name, dtype, shape and bytes. A tensor on the meta device has no bytes."""
    head = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.is_meta or not tensor.numel():
        return head
    content: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(content, head)


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: checksum(name, tensor) for name, tensor in tensors.items()}


def differing(found: Mapping[str, int], saved: Mapping[str, int]) -> str:
    """The first names whose checksums differ, or that only one side has; "" if there are none."""
    return ", ".join(sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))[:3])


def as_state(snapshot: Snapshot) -> dict[str, Tensor]:
    """A snapshot as one dictionary of tensors; one of them holds the description."""
    described = {
        "model": snapshot.model,
        "config": snapshot.config,
        "kind": snapshot.kind,
        "prompt": snapshot.prompt,
        "checksums": checksums_of(snapshot.tensors),
    }
    text = torch.tensor(list(json.dumps(described, sort_keys=True).encode()), dtype=torch.uint8)
    return {**snapshot.tensors, "description": text}


def from_state(state: Mapping[str, Tensor]) -> Snapshot:
    """The snapshot in a dictionary that `as_state` made. Raises `lolrt.Error` for any other dictionary, and if a part is damaged or
    missing."""
    if "description" not in state:
        raise Error("this is no saved stream: it lacks 'description', which says what it is the state of")
    try:
        described = json.loads(bytes(state["description"].tolist()).decode())
        checksums = described.pop("checksums")
        tensors = {name: x for name, x in state.items() if name != "description"}
        wrong = differing(checksums_of(tensors), checksums)
        snapshot = Snapshot(tensors=tensors, **described)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Error(f"the description of this saved stream is damaged ({error!r}): take an earlier one") from error
    if wrong:
        raise Error(f"this saved stream is damaged: {wrong} are not what was saved; take an earlier one")
    return snapshot
