"""Damaged snapshot files, in every way that a file can be damaged: each is refused with one clear line.

A safetensors file is the length of its header, the header, which is JSON, and the tensors' bytes one after another.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sessions import config, run, smallest_dit, smallest_engine, smallest_text
from torch import Tensor

import lolrt
from lolrt.session.session import Session
from lolrt.session.snapshot import Snapshot, checksum

RECALL = config(lolrt.Window(1, 2, 1, recall_frames=2, store_frames=3), probe=True)


def header_of(content: bytes) -> tuple[dict[str, object], int]:
    """The header, and where the tensors' bytes begin."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length


def with_header(header: dict[str, object], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def unreadable(path: Path, content: bytes | None = None) -> str:
    """The error for a file that must not be read: a `lolrt.CheckpointError` with one line."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(lolrt.CheckpointError) as refusal:
        Snapshot.read(path)
    assert str(refusal.value).isprintable() and path.name in str(refusal.value)
    return str(refusal.value)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    """The smallest snapshot with everything that a session's snapshot can have, some kilobytes, so that flips hit every part."""
    one = Session(smallest_engine(smallest_dit(torch.bfloat16), pages=RECALL.window.pool_pages, sessions=1), smallest_text(1), RECALL)
    run(one.engine, one, 4)
    one.set_prompt(smallest_text(2), over_chunks=3)
    run(one.engine, one, 1)
    path = tmp_path_factory.mktemp("small") / "s.safetensors"
    one.snapshot().write(path)
    return path.read_bytes()


def test_every_way_to_cut_a_file_short_is_seen(small_file, tmp_path):
    _, body = header_of(small_file)
    places = {0, 1, 7, 8, 9, body - 1, body, body + 1, len(small_file) - 1, *range(0, len(small_file), max(1, len(small_file) // 60))}
    for place in places - {len(small_file)}:
        unreadable(tmp_path / "s.safetensors", small_file[:place])
    unreadable(tmp_path / "s.safetensors", small_file + b"\0")


@pytest.mark.parametrize("part", ["header", "description", "tensors"])
def test_every_bit_that_is_flipped_is_seen(part, small_file, tmp_path):
    """With a seed, 150 flips in each part. If a file can still be read, the result must equal the original: white space may have become
    other white space."""
    _, body = header_of(small_file)
    at = small_file.index(b"__metadata__")
    start, stop = {"header": (0, body), "description": (at, at + 2500), "tensors": (body, len(small_file))}[part]
    chance = random.Random(part)
    whole = Snapshot.read(write(tmp_path / "whole.safetensors", small_file))
    read = 0
    for _ in range(150):
        damaged = bytearray(small_file)
        damaged[chance.randrange(start, min(stop, body if part != "tensors" else stop))] ^= 1 << chance.randrange(8)
        path = write(tmp_path / "s.safetensors", bytes(damaged))
        try:
            found = Snapshot.read(path)
        except lolrt.CheckpointError as error:
            assert str(error).isprintable()
            continue
        read += 1
        assert replace(found, tensors={}) == replace(whole, tensors={})
        assert found.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(found.tensors[name].nan_to_num(), x.nan_to_num()) for name, x in whole.tensors.items())
    assert read <= 3


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def changed(content: bytes, change: Callable[[dict[str, str], dict[str, Tensor]], None], path: Path) -> str:
    """What is said of a file whose metadata and tensors were changed by someone who knows the format but for the checksums."""
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    path.unlink()  # the tensors are still mapped to it
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return unreadable(path)


def test_tensors_that_are_not_what_was_saved(small_file, tmp_path):
    path = tmp_path / "s.safetensors"

    def swap(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        """Of one shape and dtype, so that only the checksum's name tells them apart."""
        tensors["switch.target"], tensors["switch.start"] = tensors["switch.start"], tensors["switch.target"]

    def extra(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors["another"] = torch.zeros(2)

    def fewer(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        del tensors["cache.stored_pages"]

    def reshaped(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors["inputs"] = tensors["inputs"].flatten()

    def retyped(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        tensors["cache.pages"] = tensors["cache.pages"].view(torch.float16)

    for change, named in (
        (swap, "switch.start, switch.target"),
        (extra, "another"),
        (fewer, "cache.stored_pages"),
        (reshaped, "inputs"),
        (retyped, "cache.pages"),
    ):
        assert f"{named} are not what was saved" in changed(small_file, change, path)


def test_swapping_two_tensors_and_their_checksums_is_seen(small_file, tmp_path):
    """The name is part of the checksum."""

    def swap(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        checksums = json.loads(metadata["lolrt.checksums"])
        for of in (checksums, tensors):
            of["switch.target"], of["switch.start"] = of["switch.start"], of["switch.target"]
        metadata["lolrt.checksums"] = json.dumps(checksums)

    assert "switch.start, switch.target" in changed(small_file, swap, tmp_path / "s.safetensors")


@pytest.mark.parametrize("table", [None, "", "{", "{}", "[]", "5", "null", '"x"', "[" * 100_000, '{"lolrt.snapshot": null}'])
def test_a_checksum_table_that_is_none(table, small_file, tmp_path):
    def without(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        del metadata["lolrt.checksums"]
        metadata |= {} if table is None else {"lolrt.checksums": table}

    assert "damaged" in changed(small_file, without, tmp_path / "s.safetensors")


def described(change: Callable[[dict[str, object]], object]) -> Callable[[dict[str, str], dict[str, Tensor]], None]:
    """A change of the description, by a program that computes its checksum as well: a lolrt of another time."""

    def apply(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        found = json.loads(metadata["lolrt.snapshot"])
        found = change(found) or found
        metadata["lolrt.snapshot"] = json.dumps(found)
        checksums = json.loads(metadata["lolrt.checksums"])
        checksums["lolrt.snapshot"] = zlib.crc32(metadata["lolrt.snapshot"].encode())
        metadata["lolrt.checksums"] = json.dumps(checksums)

    return apply


def test_another_format_is_told_by_its_number(small_file, tmp_path):
    for number in (0, 2, "1", None, [1], 1.5):
        told = changed(small_file, described(lambda found, number=number: found.update(format=number)), tmp_path / "s.safetensors")  # type: ignore[misc]
        assert f"a snapshot of format {number!r}, not 1: resume it with the lolrt that saved it" in told


@pytest.mark.parametrize("change", [
    lambda found: found.pop("model"), lambda found: found.update(colour="red"), lambda found: [1], lambda found: "text",
    lambda found: found.pop("format"),
])  # fmt: skip
def test_a_description_that_is_none(change, small_file, tmp_path):
    def apply(found: dict[str, object]) -> object:
        changed = change(found)
        return changed if isinstance(changed, (list, str)) and "format" in found and len(found) == 6 else None

    assert "damaged" in changed(small_file, described(apply), tmp_path / "s.safetensors")


def test_files_that_are_no_snapshots(tmp_path):
    path = tmp_path / "s.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    assert "a safetensors file and no snapshot" in unreadable(path)
    save_file({"x": torch.zeros(3)}, path, {"format": "pt"})
    assert "a safetensors file and no snapshot" in unreadable(path)
    for content in (b"", b"{}", pickle.dumps({"next_frame": 3}), b"\x89PNG\r\n\x1a\n" + bytes(200), b"\xff" * 64):
        assert "no snapshot" in unreadable(path, content)
    torch.save({"x": torch.zeros(3)}, path)
    assert "no snapshot" in unreadable(path)
    (tmp_path / "folder").mkdir()
    assert "no snapshot" in unreadable(tmp_path / "folder")
    assert "no snapshot" in unreadable(tmp_path / "not there")


def test_a_checksum_is_of_name_dtype_shape_and_bytes():
    x = torch.arange(6, dtype=torch.int32)
    seen = {checksum("x", x), checksum("y", x), checksum("x", x.view(2, 3)), checksum("x", x.view(torch.float32)), checksum("x", x.flip(0))}
    assert len(seen) == 5
    assert checksum("x", x[:0]) != checksum("x", x[:0].view(0, 1))
    assert checksum("x", torch.tensor(True)) != checksum("x", torch.tensor(False))
