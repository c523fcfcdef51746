"""How a server is to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lolrt.media import CRF


@dataclass(frozen=True)
class Settings:
    max_sessions: int = 4
    """Sessions that may be open."""
    lease_seconds: float = 120.0
    """A session ends when for so long nobody has watched it or asked anything of it, unless it was opened with another lease."""
    ahead_seconds: float = 2.0
    """The most that a session is made ahead of its viewers."""
    dvr_seconds: float = 60.0
    """That viewers can go back, or be away."""
    crf: int = CRF
    """Loss of the video, 1 to 51; 1 is the least."""
    token: str | None = None
    """That clients have to know."""
    max_client_sessions: int | None = None
    """Sessions that one client, by its address, may have open; by default as many as there may be."""
    max_lifetime_seconds: float | None = None
    """A session ends after so long, whoever watches it."""
    max_video_seconds: float = 60.0
    """The longest clip that may be asked for."""
    save_every_seconds: float = 10.0
    """How often sessions are saved."""
    state: Path | None = None
    """Where sessions are kept."""
