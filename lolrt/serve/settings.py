"""Settings of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lolrt.media import CRF


@dataclass(frozen=True)
class Settings:
    max_sessions: int = 4
    """The most sessions that are open at the same time."""
    lease_seconds: float = 120.0
    """A session ends when it has had no viewer and no request for so long, unless it was opened with another lease."""
    ahead_seconds: float = 2.0
    """How far ahead of its viewers a session is made, at most."""
    dvr_seconds: float = 60.0
    """How far viewers can go back, and how long they can be disconnected without losing video."""
    crf: int = CRF
    """Compression of the video, 1 to 51; 1 loses the least."""
    token: str | None = None
    """The token that clients have to send."""
    max_client_sessions: int | None = None
    """The most sessions that one client address may have open; by default no limit of its own."""
    max_lifetime_seconds: float | None = None
    """A session ends after so long, even if it is watched."""
    max_video_seconds: float = 60.0
    """The longest clip that may be asked for."""
    save_every_seconds: float = 10.0
    """How often sessions are saved."""
    lora_modules: Mapping[str, Path] = field(default_factory=dict)
    """The adapters that clients may choose, by the names that they use."""
    max_loras: int = 1
    """The most different choices of adapters at the same time, where no session comes from another server. Each may take as much memory as
    the DiT."""
    kv_dtype: torch.dtype | None = None
    """The dtype of the KV cache's pages, by default the model's; see `lolrt.LatentStream`."""
    state: Path | None = None
    """The folder in which sessions are kept."""
