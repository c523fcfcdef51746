"""Checks, before anything is computed, whether the parts of a model belong together, by their sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lolrt.checkpoint.formats import TITLES
from lolrt.checkpoint.model_files import ModelFiles, read_component
from lolrt.checkpoint.shapes import dit_config, taehv_config, text_encoder_config, vae_config
from lolrt.checkpoint.vocabulary import read_rows
from lolrt.errors import CheckpointError


def check_parts(files: ModelFiles, needed: Collection[str]) -> None:
    """Raises `lolrt.CheckpointError` when the needed parts, such as "dit" and "vae", belong to different models or cannot make a stream.

    This does not check for missing parts. A tokenizer is checked when it is read.
    """
    if wrong := [*misfits(files, needed)]:
        raise CheckpointError(f"{files.source}: {'; '.join(wrong)}")


def misfits(files: ModelFiles, needed: Collection[str]) -> Iterator[str]:
    """The mismatches between DiT, latents and text, one clause each. Raises `lolrt.CheckpointError` for a part that is invalid by
    itself."""
    if files.dit is None or "dit" not in needed:
        return
    dit = dit_config(read_component(files, "dit"))
    for kind, channels in (("vae", _vae_channels), ("taehv", _taehv_channels)):
        if kind in needed and getattr(files, kind) and channels(files) != dit.out_dim:
            yield f"the {TITLES[kind]} has latents of {channels(files)} channels, the DiT of {dit.out_dim}; take both of one model"
    if "text_encoder" in needed and (text_dim := _text_dim(files)) not in (None, dit.text_dim):
        yield f"the text encoder gives {text_dim} channels, the DiT takes {dit.text_dim}; take both of one model"


def _vae_channels(files: ModelFiles) -> int:
    return vae_config(read_component(files, "vae")).z_dim


def _taehv_channels(files: ModelFiles) -> int:
    return taehv_config(read_component(files, "taehv")).z_dim


def _text_dim(files: ModelFiles) -> int | None:
    """The width of the rows of text, from the encoder or the vocabulary; None if there is neither."""
    if files.vocabulary:
        return read_rows(files.vocabulary).shape[1]
    return text_encoder_config(read_component(files, "text_encoder")).dim if files.text_encoder else None
