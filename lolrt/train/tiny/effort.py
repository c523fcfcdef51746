"""How much is measured of a trained model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    codec_clips: int = 12
    codec_frames: int = 81
    examples: int = 8
    """Example prompts whose videos are looked at where the phases return."""
    short_minutes: int = 10
    short_videos: int = 4
    """Of each policy."""
    long_minutes: int = 60
    long_videos: int = 3
    """Of the model's own policy: one of each kind of object."""
    switches: int = 20
    switch_seconds: float = 45.0
    """That are looked at after a new prompt."""
    training: int = 10_000
    """Pictures that the reader learns from."""
    training_steps: int = 1200
    held_out: int = 1100
    """Pictures that the reader is tried on, a hundred of each kind."""
