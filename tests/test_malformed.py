"""A corpus of files that are not what they claim: each gives a one-line error and exit status 2, and never half a model."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import save, save_file

import lolrt
from fuzz.readers import run, seeds
from lolrt import pipeline
from lolrt.cli import main

WEIGHTS, BIAS = "diffusion_pytorch_model.safetensors", "head.head.bias"
Header = dict[str, Any]


@functools.cache
def sound() -> bytes:
    return save(layouts.dit_tensors())


def rewritten(change: Callable[[Header], Any]) -> bytes:
    """A file of a small DiT with a changed header, in place or a new one."""
    whole = sound()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def set_field(name: str, field: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[name][field] = value

    return change


def first(header: Header) -> str:
    return min((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])


def overlap(header: Header) -> None:
    """The second tensor begins where the first does."""
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    begin, end = header[names[1]]["data_offsets"]
    header[names[1]]["data_offsets"] = [0, end - begin]


def gap(header: Header) -> None:
    del header[first(header)]


def renamed(header: Header) -> None:
    header["\x1b[2J\n"] = header.pop(BIAS)


def twice(header: Header) -> bytes:
    text = json.dumps(header)
    name = first(header)
    return (text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}" + "}").encode()


def valid() -> bytes:
    return rewritten(lambda header: None)


def short_header() -> bytes:
    """The header's length is too small by one."""
    whole = valid()
    return struct.pack("<Q", int.from_bytes(whole[:8], "little") - 1) + whole[8:]


SAFETENSORS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "ends before its header"),
    "seven bytes": (lambda: valid()[:7], "ends before its header"),
    "length only": (lambda: valid()[:8], "claims"),
    "cut in the header": (lambda: valid()[:1000], "claims"),
    "cut in the data": (lambda: valid()[:-10], "of a file of"),
    "longer than its tensors": (lambda: valid() + b"\0" * 8, "of a file of"),
    "header length of 2^64 - 1": (lambda: b"\xff" * 8 + valid()[8:], "claims"),
    "header length one too small": (short_header, "no JSON|of a file of"),
    "header length 0": (lambda: struct.pack("<Q", 0) + valid()[8:], "no JSON"),
    "no JSON": (lambda: rewritten(lambda _: b"{nonsense"), "no JSON"),
    "not UTF-8": (lambda: rewritten(lambda _: b'{"\xff": 1}'), "no JSON"),
    "deep JSON": (lambda: rewritten(lambda _: b'{"a":' * 100_000), "no JSON"),
    "a list": (lambda: rewritten(lambda _: b"{}".replace(b"{}", b"[]")), "no JSON object"),
    "a name twice": (lambda: rewritten(twice), "comes twice"),
    "metadata of numbers": (lambda: rewritten(lambda header: {**header, "__metadata__": {"a": 1}}), "metadata"),
    "overlapping offsets": (lambda: rewritten(overlap), "overlaps"),
    "a gap": (lambda: rewritten(gap), "gap"),
    "offsets backwards": (lambda: rewritten(set_field(BIAS, "data_offsets", [100, 0])), "bytes"),
    "offsets below 0": (lambda: rewritten(set_field(BIAS, "data_offsets", [-256, 0])), "expected whole numbers"),
    "offsets of floats": (lambda: rewritten(set_field(BIAS, "data_offsets", [0.0, 256.0])), "expected whole numbers"),
    "three offsets": (lambda: rewritten(set_field(BIAS, "data_offsets", [0, 1, 2])), "two offsets"),
    "a name that commands the terminal": (lambda: rewritten(renamed), r"unexpected: \\x1b\[2J\\n"),
    "a shape of another size": (lambda: rewritten(set_field(BIAS, "shape", [65])), "takes another number"),
    "a huge shape": (lambda: rewritten(set_field(BIAS, "shape", [2**62, 2**62])), "takes another number"),
    "a shape of text": (lambda: rewritten(set_field(BIAS, "shape", "64")), "expected whole numbers"),
    "a shape of true": (lambda: rewritten(set_field(BIAS, "shape", [True])), "expected whole numbers"),
    "an unknown dtype": (lambda: rewritten(set_field(BIAS, "dtype", "F4")), "dtype 'F4'"),
    "a dtype of a list": (lambda: rewritten(set_field(BIAS, "dtype", ["F32"])), "dtype"),
    "a missing field": (lambda: rewritten(lambda header: header[BIAS].pop("shape") and None), "other fields"),
    "an entry of text": (lambda: rewritten(lambda header: {**header, BIAS: "F32"}), "other fields"),
    "integers for weights": (lambda: rewritten(set_field(BIAS, "dtype", "I32")), "weights do not have: head.head.bias int32"),
    "another shape": (lambda: rewritten(set_field(BIAS, "shape", [8, 8])), r"head.head.bias \[8, 8\] instead of \[64\]"),
}  # fmt: skip


def with_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = layouts.dit_tensors()
        tensors["blocks.1.ffn.2.weight"][3, 4] = value
        torch.save(tensors, path)

    return write


class Payload:
    """Runs a shell command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Bomb:
    """Asks for a terabyte, by a function that is on torch's own list of harmless ones."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**12,)


def saved(path: Path) -> list[tuple[str, bytes]]:
    """Writes a valid file, and returns its records."""
    torch.save({"generator": layouts.dit_tensors()}, path)
    with zipfile.ZipFile(path) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def archived(path: Path, records: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, content)


def zip_bomb(path: Path) -> None:
    archived(path, [*saved(path), ("x/data/9999", bytes(20_000_000))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000_000


def overlapping_records(path: Path) -> None:
    """A zip whose directory points many names at the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/data/0", bytes(100_000))
        for i in range(1, 50):
            info = zipfile.ZipInfo(f"x/data/{i}")
            info.header_offset = archive.filelist[1].header_offset
            info.file_size = info.compress_size = 100_000
            info.CRC = archive.filelist[1].CRC
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    path.write_bytes(buffer.getvalue())


def short_storage(path: Path) -> None:
    """Tensors that claim more than their record holds."""
    archived(path, [(name, content[:100] if "/data/" in name else content) for name, content in saved(path)])


def without_records(path: Path) -> None:
    archived(path, [(name, content) for name, content in saved(path) if not name.endswith("/data/5")])


def repeated(path: Path) -> None:
    """A tensor whose strides are 0: a terabyte out of four bytes."""
    torch.save({**layouts.dit_tensors(), BIAS: torch.zeros(1).expand(2**38)}, path)


def shared(path: Path) -> None:
    """Many names for the same bytes."""
    whole = torch.zeros(320, 256)
    torch.save({**layouts.dit_tensors(), **{f"blocks.{i}.ffn.0.weight": whole for i in range(900)}}, path)


def truncated(kept: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        saved(path)
        path.write_bytes(path.read_bytes()[:kept])

    return write


def stack_global(path: Path) -> None:
    archived(path, [("x/data.pkl", pickle.dumps(Payload(path.with_name("ran")), 4))])


def with_opcodes(*codes: bytes) -> Callable[[Path], None]:
    """An archive whose pickle consists of these opcodes, between a beginning and an end."""
    return lambda path: archived(path, [("x/data.pkl", b"\x80\2" + b"".join(codes) + b"."), ("x/version", b"3\n")])


def long(number: int) -> bytes:
    return b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)


# Python's hash of an integer is its remainder by this number, so all multiples fall into one slot of a dictionary.
ONE_HASH = 2**61 - 1
COLLIDING = b"}(" + b"".join(long(i * ONE_HASH) + b"N" for i in range(1, 20_000)) + b"u"
TUPLE_KEY = b"}K\1K\2\x86Ns"
# Each tuple contains the one before twice, 40 times: as text it would take a terabyte.
DOUBLED = b"K\1\x85" + b"q\1h\1\x86" * 40


def two_directories(path: Path) -> None:
    """Readers that find the directory by its stated place, and those that search back from the end of the archive, find different
    pickles."""
    archived(path, [("x/data.pkl", pickle.dumps(Bomb(), 2)), ("x/version", b"3\n")])
    hidden = path.read_bytes()
    archived(path, saved(path))
    path.write_bytes(hidden + path.read_bytes())


def other_checksum(path: Path) -> None:
    saved(path)
    path.write_bytes(path.read_bytes().replace(b"head.head.bias", b"head.head.bibs"))


PICKLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (with_value(float("nan")), "not finite, in blocks.1.ffn.2.weight"),
    "infinity": (with_value(float("inf")), "not finite, in blocks.1.ffn.2.weight"),
    "too large for bf16": (with_value(3.4e38), "not finite"),
    "runs a command": (lambda path: torch.save({"generator": Payload(path.with_name("ran"))}, path), "asks for posix.system"),
    "runs a command, protocol 4": (stack_global, "has a FRAME"),
    "a pickle without an archive": (lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("ran")))), "no zip archive"),
    "a terabyte by name": (lambda path: torch.save({"generator": Bomb()}, path), "asks for .*bytearray"),
    "a zip bomb": (zip_bomb, "is compressed"),
    "overlapping records": (overlapping_records, "compressed"),
    "strides of 0": (repeated, "would unfold to 1,099,51"),
    "one storage many times over": (shared, "would unfold to"),
    "records too short": (short_storage, "damaged"),
    "a record missing": (without_records, "damaged"),
    "keys that collide": (with_opcodes(COLLIDING), "a dictionary's key is a int"),
    "a key that is a tuple": (with_opcodes(TUPLE_KEY), "a dictionary's key is a tuple"),
    "a key as long as a terabyte": (with_opcodes(b"}", DOUBLED, b"Ns"), "a dictionary's key is a tuple"),
    "sizes as long as a terabyte": (with_opcodes(b"ctorch\nSize\n", DOUBLED, b"\x85R"), "sizes are none"),
    "a storage as long as a terabyte": (with_opcodes(DOUBLED, DOUBLED, DOUBLED, DOUBLED, b"(", DOUBLED, b"tQ"), "damaged"),
    "a call of what is no function": (with_opcodes(b"ctorch\nFloatStorage\n)R"), "calls what is no function"),
    "a call of a number": (with_opcodes(b"K\1)R"), "calls what is no function"),
    "items of no dictionary": (with_opcodes(b"NK\1K\1s"), "no dictionary"),
    "items with no mark": (with_opcodes(b"}K\1u"), "damaged"),
    "an empty stack": (with_opcodes(b""), "damaged"),
    "a memo that is not there": (with_opcodes(b"h\5"), "damaged"),
    "what torch's unpickler gives up on": (with_opcodes(b"}N0"), "its pickle has a POP"),
    "a list": (with_opcodes(b"]"), "expected a dictionary"),
    "two directories": (two_directories, "does not begin where the file does"),
    "a pickle of another checksum": (other_checksum, "checksum"),
    "no data.pkl": (lambda path: archived(path, [("x/version", b"3")]), "data.pkl"),
    "no pickle": (lambda path: archived(path, [("x/data.pkl", b"nonsense"), ("x/version", b"3")]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "no zip archive"),
    "cut early": (truncated(1000), "no zip archive"),
    "cut late": (truncated(-30), "no zip archive"),
    "integers for weights": (lambda path: torch.save({**layouts.dit_tensors(), BIAS: torch.zeros(64, dtype=torch.int32)}, path), "int32"),
    "numbers for tensors": (lambda path: torch.save({**layouts.dit_tensors(), BIAS: 3.0}, path), "missing: head.head.bias"),
    "another shape": (lambda path: torch.save({**layouts.dit_tensors(), BIAS: torch.zeros(8)}, path), r"\[8\] instead of \[64\]"),
}  # fmt: skip


def line_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The command line's error about a model with this DiT and otherwise valid parts; exit status 2 is asserted."""
    model, parts = path.with_name("model.toml"), path.with_name("parts")
    parts.mkdir()
    save_file(layouts.vae_tensors(), parts / "vae.safetensors")
    (parts / "text.json").write_text('{"words": ["red"], "groups": {"colour": ["red"], "filler": ["a", "car"]}}')
    save_file({"embedding.weight": torch.zeros(1, layouts.DIT.text_dim)}, parts / "text.safetensors")
    model.write_text(f"dit = '{path}'\nvae = '{parts}/vae.safetensors'\nvocabulary = '{parts}'\n")
    assert main(["generate", "a red car", "-o", str(path.with_name("v.mp4")), "--model", str(model)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    return line


def refused(path: Path, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (path.parent / "ran").exists()
    line = line_of(path, capsys)
    assert line.startswith("lolrt: ") and re.search(hint, line)
    assert main(["convert", str(path), str(path.with_name("converted")), "--dtype", "bfloat16"]) == 2
    assert re.search(hint, capsys.readouterr().err) and not list(path.parent.glob("converted*"))
    if main(["inspect", str(path)]):  # it looks at no values; a file that it cannot read at all, it refuses in the same words
        assert re.search(hint, capsys.readouterr().err)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_malformed_safetensors(name, tmp_path, capsys):
    make, hint = SAFETENSORS[name]
    (tmp_path / WEIGHTS).write_bytes(make())
    refused(tmp_path / WEIGHTS, hint, capsys)


@pytest.mark.parametrize("name", PICKLES)
def test_malformed_pickles(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "preferred_dtype", lambda *_: torch.bfloat16)  # as on a CPU that multiplies it
    make, hint = PICKLES[name]
    make(tmp_path / "model.pt")
    refused(tmp_path / "model.pt", hint, capsys)


def test_the_corpus_is_made_from_sound_files(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(valid())
    assert lolrt.load_dit(tmp_path / WEIGHTS).config == layouts.DIT
    archived(tmp_path / "model.pt", saved(tmp_path / "model.pt"))
    with pytest.raises(lolrt.CheckpointError, match="more than one DiT"):
        lolrt.load_dit(tmp_path)


@pytest.mark.parametrize("fault", ["half of a pair", "rank", "stranger", "NaN"])
def test_adapters_that_do_not_fit_are_told(fault, tmp_path):
    layouts.save_wan(tmp_path, layouts.dit_tensors())
    tensors = layouts.lora_tensors(rank=4)
    layer = "base_model.model.blocks.1.ffn.0.lora_"
    if fault == "half of a pair":
        del tensors[f"{layer}A.weight"]
    elif fault == "rank":
        tensors[f"{layer}A.weight"] = torch.zeros(5, 256)
    elif fault == "stranger":
        tensors |= {f"base_model.model.blocks.9.ffn.0.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    else:
        tensors[f"{layer}B.weight"][0, 0] = float("nan")
    torch.save({"generator_lora": tensors}, tmp_path / "lora.pt")
    hints = {
        "half of a pair": "ffn.0 has lora_B, of which no adapter",
        "rank": r"A \[5, 256\]",
        "stranger": r"the model has no blocks\.9\.ffn\.0\.weight",
        "NaN": "not finite",
    }
    with pytest.raises(lolrt.CheckpointError, match=hints[fault]):
        lolrt.load_dit(tmp_path)


def test_no_error_tells_to_trust_a_file(tmp_path):
    """torch's own messages about a pickle do so."""
    for name, (make, _) in PICKLES.items():
        make(tmp_path / "model.pt")
        try:
            lolrt.load_dit(tmp_path / "model.pt")
        except lolrt.CheckpointError as error:
            assert "weights_only" not in str(error), name


@pytest.mark.parametrize("shape", [(0, 1 << 40, 1 << 40), (1 << 40, 1 << 40, 0)])
@pytest.mark.parametrize("container", ["safetensors", "gguf"])
def test_sizes_that_overflow_beside_a_size_of_zero(container, shape, tmp_path):
    """The tensor has no values, so its bytes are all there."""
    path = tmp_path / f"model.{container}"
    if container == "safetensors":
        header = json.dumps({"patch_embedding.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    else:
        name = b"patch_embedding.weight"
        text = struct.pack("<4sIQQQ", b"GGUF", 3, 1, 0, len(name)) + name + struct.pack("<I3QIQ", 3, *shape[::-1], 0, 0)
        path.write_bytes(text.ljust(-(-len(text) // 32) * 32, b"\0"))
    with pytest.raises(lolrt.CheckpointError, match="shape"):
        lolrt.load_dit(path)


def test_seeds_and_findings_of_the_fuzzer(tmp_path, data):
    findings = {path.name: path.read_bytes() for path in sorted((data / "fuzz").glob("*"))}
    for content in (seeds() | findings).values():
        run(content, tmp_path)
