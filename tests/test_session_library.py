"""The session library and its example: streams of a packaged model in a process without Python have the bits of Python's."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from capsules import Tensor as TensorView
from commands import output_of, run
from torch import Tensor

import lolrt
from lolrt import aot
from lolrt.aot import package

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROMPTS = "a red balloon over the hills", "a white sailboat on the sea at night"
CHUNKS, SWITCH = 6, 4  # the window is full after four chunks; then the prompt changes
ALONE = {"OMP_NUM_THREADS": "1"}  # torch's products may depend on the number of threads


@pytest.fixture(scope="module")
def program(installed_with_torch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("embed_cpp")
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    output_of("cmake", "-S", ROOT / "examples" / "embed_cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={installed_with_torch}", flags)
    output_of("cmake", "--build", build)
    return build / "embed"


@pytest.fixture(scope="module")
def pipe() -> lolrt.Pipeline:
    return lolrt.load("tiny", torch.float32)


@pytest.fixture(scope="module")
def packaged(pipe: lolrt.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny as a package, and beside it the embeddings of the prompts."""
    folder = tmp_path_factory.mktemp("package")
    package(pipe, folder)
    for i, prompt in enumerate(PROMPTS):
        (folder / f"{i}.f32").write_bytes(pipe.encode_text(prompt).float().numpy().tobytes())
    return folder


@pytest.fixture
def embed(program: Path, packaged: Path, pipe: lolrt.Pipeline, tmp_path: Path) -> Callable[..., Tensor]:
    """Runs the program and returns the frames that it wrote, [n, height, width, 3]. No library of Python's may be loaded by it."""

    def run_it(*words: Any, folder: Path = packaged) -> Tensor:
        path = tmp_path / "frames.rgb"
        command = [str(word) for word in (program, folder, *words)]
        with path.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, env=ALONE | {"LD_DEBUG": "files"}, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "libtorch_cpu" in done.stderr and "libpython" not in done.stderr and "libtorch_python" not in done.stderr
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(-1, pipe.height, pipe.width, 3)

    return run_it


def frames_of(stream: lolrt.Stream, chunks: int) -> Tensor:
    return torch.cat([next(stream).frames for _ in range(chunks)])


def test_a_process_without_python_makes_the_same_frames(
    embed: Callable[..., Tensor], packaged: Path, pipe: lolrt.Pipeline, one_thread: None
) -> None:
    stream = pipe.stream(PROMPTS[0], seed=7)
    expected = [frames_of(stream, SWITCH)]
    stream.set_prompt(PROMPTS[1])
    expected.append(frames_of(stream, CHUNKS - SWITCH))
    frames = embed(CHUNKS, "--seed", 7, "--prompt", packaged / "0.f32", "--then", SWITCH, packaged / "1.f32")
    assert torch.equal(frames, torch.cat(expected))


@pytest.mark.parametrize(
    "rope", [{"positions": "window"}, {"positions": "anchored", "anchor_frames": 12, "frequencies": "yarn", "stretch": 2.0}]
)
def test_other_policies_and_samplers_have_the_same_frames_too(
    rope: dict[str, Any], embed: Callable[..., Tensor], packaged: Path, pipe: lolrt.Pipeline, tmp_path: Path, one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is compiled does not depend on them. The sinks are moved from the fifth chunk on."""
    monkeypatch.setattr(aot, "_compile", lambda module, inputs, path: shutil.copy(packaged / path.name, path))
    policy = {
        "rope": replace(pipe.rope, **rope),
        "sampler": lolrt.Sampler(timesteps=(1000, 500), method="euler", shift=2.0),
    }
    aot.package(pipe, tmp_path / "package", **policy)
    frames = embed(CHUNKS, "--seed", 1, "--prompt", packaged / "0.f32", folder=tmp_path / "package")
    assert torch.equal(frames, frames_of(pipe.stream(PROMPTS[0], seed=1, **policy), CHUNKS))


def test_a_snapshot_of_python_goes_on_without_it(
    embed: Callable[..., Tensor], pipe: lolrt.Pipeline, tmp_path: Path, one_thread: None
) -> None:
    """In the middle of a change of the prompt."""
    stream = pipe.stream(PROMPTS[0], seed=2**64 - 1)
    frames_of(stream, 2)
    stream.set_prompt(PROMPTS[1], over_chunks=2, recache="sinks")
    frames_of(stream, 1)
    stream.save(tmp_path / "python.safetensors")
    assert torch.equal(embed(2, "--resume", tmp_path / "python.safetensors"), frames_of(stream, 2))


def test_a_snapshot_of_the_program_goes_on_in_python(
    embed: Callable[..., Tensor], packaged: Path, pipe: lolrt.Pipeline, tmp_path: Path, one_thread: None
) -> None:
    path = tmp_path / "program.safetensors"
    embed(2, "--seed", 5, "--prompt", packaged / "0.f32", "--save", path)
    whole = pipe.stream(PROMPTS[0], seed=5)
    frames_of(whole, 2)
    assert torch.equal(frames_of(pipe.resume(path), 2), frames_of(whole, 2))


def test_a_snapshot_of_another_stream_or_a_damaged_one_is_refused(
    program: Path, packaged: Path, pipe: lolrt.Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    pipe.stream(PROMPTS[0], rope=replace(pipe.rope, sigma=0.5)).save(path)
    failed = run(program, packaged, 1, "--resume", path, **ALONE)
    assert failed.returncode == 1 and "config.rope.sigma is 0.5 in the saved one and 0.8 here" in failed.stderr
    pipe.stream(PROMPTS[0]).save(path)
    whole = path.read_bytes()
    for at in (len(whole) - 1, 4, 100):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        failed = run(program, packaged, 1, "--resume", path, **ALONE)
        assert failed.returncode == 1 and "is no snapshot of a stream, or a damaged one" in failed.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(0, 64), "prompt is [0, 64]; expected [1 to 8 text tokens, 64]"),
        (torch.zeros(9, 64), "prompt is [9, 64]; expected"),
        (torch.full((2, 64), float("nan")), "prompt has values that are not finite"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told(rows: Tensor, message: str, program: Path, packaged: Path, tmp_path: Path) -> None:
    (tmp_path / "p.f32").write_bytes(rows.numpy().tobytes())
    failed = run(program, packaged, 1, "--prompt", tmp_path / "p.f32", **ALONE)
    assert failed.returncode == 1 and message in failed.stderr


def test_what_is_no_package_is_told(program: Path, packaged: Path, tmp_path: Path) -> None:
    failed = run(program, tmp_path, 1, "--prompt", packaged / "0.f32", **ALONE)
    assert failed.returncode == 1 and "is no package of a model: it lacks stream.pt" in failed.stderr
    torch.save(torch.load(packaged / "stream.pt") | {"format": 0}, tmp_path / "stream.pt")
    failed = run(program, tmp_path, 1, "--prompt", packaged / "0.f32", **ALONE)
    assert failed.returncode == 1 and "is a package of format 0, not 1" in failed.stderr


def test_another_torch_is_told(program: Path, packaged: Path, tmp_path: Path) -> None:
    """Whether it made the package, or is in the process."""
    own = torch.__version__.partition("+")[0]
    for other in ("2.9.1+cpu", f"{own}1", "2"):
        torch.save(torch.load(packaged / "stream.pt") | {"torch": other}, tmp_path / "stream.pt")
        failed = run(program, tmp_path, 1, "--prompt", packaged / "0.f32", **ALONE)
        told = f"is a package of torch {other}, and liblolrt_session is built for torch {own}: make it anew with that torch"
        assert failed.returncode == 1 and told in failed.stderr
    (tmp_path / "old.c").write_text("unsigned long long aoti_torch_abi_version(void) { return 0x0209010000000000; }")
    output_of("cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "old.so")
    failed = run(program, packaged, 1, "--prompt", packaged / "0.f32", LD_PRELOAD=str(tmp_path / "old.so"), **ALONE)
    told = f"liblolrt_session is built for torch {own}, and this process has libtorch 2.9.1: build it with that torch"
    assert failed.returncode == 1 and told in failed.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sink_frames": 2}, "multiples of chunk_frames, 3"),
        ({"recall_frames": 2}, "recalled"),
        ({"skip": 0.1}, "skipped"),
        ({"gate": lolrt.SinkGate(bias=-1.0)}, "a gate"),
    ],
)
def test_a_window_that_no_package_can_hold_is_refused(changes: dict[str, Any], message: str, pipe: lolrt.Pipeline, tmp_path: Path) -> None:
    with pytest.raises(lolrt.Error, match=message):
        package(pipe, tmp_path / "none", window=replace(pipe.window, **changes))
    assert not (tmp_path / "none").exists()


class Chunk(ctypes.Structure):
    _fields_ = (("first_frame", ctypes.c_int64), ("latents", TensorView), ("frames", TensorView))


def test_calls_of_c_from_a_process_with_python(installed_with_torch: Path, packaged: Path, pipe: lolrt.Pipeline, one_thread: None) -> None:
    """The ops are then Python's. A call that fails says why, and changes nothing."""
    library = ctypes.CDLL(str(installed_with_torch / "lib" / "liblolrt_session.so"))
    library.lolrt_session_last_error.restype = ctypes.c_char_p
    session, chunk = ctypes.c_void_p(), Chunk()
    rows = pipe.encode_text(PROMPTS[0]).float().repeat(1, 2)
    strided = rows[:, : rows.shape[1] // 2]  # its rows are not side by side
    shape, strides = ((ctypes.c_int64 * 2)(*numbers) for numbers in (strided.shape, strided.stride()))
    prompt = TensorView(rows.data_ptr(), 1, 0, 2, 2, 32, 1, ctypes.addressof(shape), ctypes.addressof(strides), 0)
    assert library.lolrt_session_open(str(packaged).encode(), ctypes.byref(prompt), ctypes.c_uint64(3), ctypes.byref(session)) == 0
    refused = {
        b"session is NULL": lambda: library.lolrt_session_set_prompt(None, ctypes.byref(prompt), 0, ctypes.c_int64(1)),
        b"prompt is NULL": lambda: library.lolrt_session_set_prompt(session, None, 0, ctypes.c_int64(1)),
        b"recache is 3": lambda: library.lolrt_session_set_prompt(session, ctypes.byref(prompt), 3, ctypes.c_int64(1)),
        b"over_chunks is 0": lambda: library.lolrt_session_set_prompt(session, ctypes.byref(prompt), 0, ctypes.c_int64(0)),
        b"session or chunk is NULL": lambda: library.lolrt_session_next_chunk(session, None),
        b"cannot write /nowhere/x": lambda: library.lolrt_session_save(session, b"/nowhere/x"),
    }
    stream = pipe.latent_stream(PROMPTS[0], seed=3)
    for _ in range(2):
        for text, call in refused.items():
            assert call() == 1 and text in library.lolrt_session_last_error()
        assert library.lolrt_session_next_chunk(session, ctypes.byref(chunk)) == 0
        expected = next(stream)
        latents = torch.frombuffer(bytearray(ctypes.string_at(chunk.latents.data, expected.latents.nbytes)), dtype=torch.float32)
        assert chunk.first_frame == expected.first_frame
        shape_of_latents = (ctypes.c_int64 * chunk.latents.ndim).from_address(chunk.latents.shape)
        assert list(shape_of_latents) == list(expected.latents.shape)
        assert torch.equal(latents.view_as(expected.latents), expected.latents)
    library.lolrt_session_close(session)


def test_the_library_exports_its_interface_only(installed_with_torch: Path) -> None:
    symbols = output_of("nm", "-D", "--defined-only", installed_with_torch / "lib" / "liblolrt_session.so")
    declared = re.findall(r"\b(lolrt_session_\w+)\(", (ROOT / "csrc" / "include" / "lolrt" / "session.h").read_text())
    assert set(re.findall(r" [TD] (\w+)", symbols)) - {"_edata", "_end"} == set(declared)
