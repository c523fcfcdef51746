"""Where a loaded DiT's weights came from, so that they can be had again without what adapters have added to them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lolrt.checkpoint.formats import Component, choose
from lolrt.checkpoint.lora import LoRA
from lolrt.checkpoint.model_files import ModelFiles, components_of, read_component, weight_files
from lolrt.errors import CheckpointError

# Device, number, size and time of the last change: one of these is another when a file has been replaced or written to.
FileState = tuple[int, int, int, int]


@dataclass(frozen=True)
class Origin:
    """Paths, and what the files were when they were read; nothing of them is kept open or in memory."""

    source: Path
    """The DiT's file of weights, or the index of several."""
    group: str
    """The entry of a training checkpoint that was used; "" where there is none."""
    lora: Path | None
    """Adapters that lie with the model, and are part of it."""
    files: dict[Path, FileState]
    changed: frozenset[str]
    """The tensors that adapters, of the model's own or given, have changed since they were read."""

    def dit(self) -> Component:
        """The weights as they are in the files, mapped. Raises `lolrt.CheckpointError` where a file is not what it was."""
        for path, state in self.files.items():
            if _state(path) != state:
                raise CheckpointError(f"{path} has changed since the model was loaded from it, or is gone: load the model anew")
        return choose(components_of(self.source), "dit", self.source, self.group)

    def own_adapters(self) -> list[LoRA]:
        return [LoRA(read_component(self.lora, "lora"))] if self.lora else []


def origin_of(files: ModelFiles, component: Component, changed: frozenset[str]) -> Origin:
    """component: the DiT of these files. changed: as of `Origin`."""
    paths = [*weight_files(component.source), *(weight_files(files.lora) if files.lora else ())]
    return Origin(component.source, component.group, files.lora, {path: _state(path) for path in paths}, changed)


def _state(path: Path) -> FileState:
    """Zeros where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
