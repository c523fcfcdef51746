"""The source of a loaded DiT's weights, so that they can be read again without the adapters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lolrt.checkpoint.formats import Component, choose
from lolrt.checkpoint.lora import LoRA
from lolrt.checkpoint.model_files import ModelFiles, components_of, read_component, weight_files
from lolrt.errors import CheckpointError

# Device, inode number, size and time of the last change. At least one of these changes when a file is replaced or written.
FileState = tuple[int, int, int, int]


@dataclass(frozen=True)
class Origin:
    """The paths of the files, and their state when they were read. No file is kept open or in memory."""

    source: Path
    """The file of the DiT's weights, or the index of several files."""
    group: str
    """The entry of a training checkpoint that was used; "" if there is none."""
    lora: Path | None
    """The file of the model's own adapters."""
    files: dict[Path, FileState]
    changed: frozenset[str]
    """The tensors that adapters have changed, both the model's own and given ones."""

    def dit(self) -> Component:
        """The weights as they are in the files, mapped. Raises `lolrt.CheckpointError` if a file has changed."""
        for path, state in self.files.items():
            if _state(path) != state:
                raise CheckpointError(f"{path} has changed since the model was loaded from it, or is gone: load the model anew")
        return choose(components_of(self.source), "dit", self.source, self.group)

    def own_adapters(self) -> list[LoRA]:
        return [LoRA(read_component(self.lora, "lora"))] if self.lora else []


def origin_of(files: ModelFiles, component: Component, changed: frozenset[str]) -> Origin:
    """The origin of a DiT. component: the DiT of these files. changed: as in `Origin`."""
    paths = [*weight_files(component.source), *(weight_files(files.lora) if files.lora else ())]
    return Origin(component.source, component.group, files.lora, {path: _state(path) for path in paths}, changed)


def _state(path: Path) -> FileState:
    """The state of a file; zeros if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
