"""Runs an operation of lolrt again and again; each time another system call fails, until every call has failed once.

    LD_PRELOAD=failing_calls.so python tests/failing_calls.py OPERATION FOLDER STEP

An operation writes below a folder. Each time it begins in a fresh one, in a child process. It may succeed, or end with one of lolrt's
errors in one line; then either the old files are still there, or the new ones are complete. The process may also end at the call, as in
a power cut; then the operation is done once more, without a failure, and must succeed. Every STEP-th call is made to fail; one line for
each kind of call says how many were. If memory runs out, FFmpeg, and the C library when it starts a thread, end the process themselves.
So in operations that use them, allocations are not made to fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import torch

import lolrt
from lolrt import cli
from lolrt.checkpoint.convert import convert
from lolrt.checkpoint.synth import synth
from lolrt.files import remove_partials
from lolrt.serve.hub import Fragment
from lolrt.serve.state import Interaction, Record, Store
from lolrt.session.snapshot import Snapshot
from lolrt.text.embeddings import EmbeddingFile, read_embedding, write_embedding, write_embeddings

KINDS = ("open", "read", "write", "sync", "rename", "make", "truncate", "allocate")
ERRORS = {"read": errno.EIO, "sync": errno.EIO, "rename": errno.EIO, "allocate": errno.ENOMEM}  # others: the disk is full
DONE, REFUSED, CRASHED, CUT = 0, 2, 1, 77
PROMPT = "a red car by the sea at noon"

lib = ctypes.CDLL(None)
lolrt.set_threads(1)
tiny = lolrt.load("tiny")
quick = replace(tiny.sampler, timesteps=(1000,), first_timesteps=())
stream = tiny.stream(PROMPT, sampler=quick)
next(stream)
OLD = stream.snapshot("light")
next(stream)
NEW = stream.snapshot("light")


class Save:
    """Writes a snapshot over an earlier one."""

    def begin(self, folder: Path) -> None:
        OLD.write(folder / "s.safetensors")

    def act(self, folder: Path) -> None:
        remove_partials(folder / "s.safetensors")
        stream.save(folder / "s.safetensors", "light")

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        found = Snapshot.read(folder / "s.safetensors")
        frames = int(found.tensors["next_frame"])
        assert frames == 6 if done else frames in (3, 6), frames
        assert cut or names(folder) == ["s.safetensors"], names(folder)


class Resume:
    """Resumes a snapshot: either nothing of the stream is there, or the frames that it continues with."""

    def begin(self, folder: Path) -> None:
        OLD.write(folder / "s.safetensors")

    def act(self, folder: Path) -> None:
        chunk = next(tiny.resume(folder / "s.safetensors"))
        assert chunk.first_frame == 3

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        assert int(Snapshot.read(folder / "s.safetensors").tensors["next_frame"]) == 3


class Convert:
    """Converts a model into a folder that does not exist."""

    def begin(self, folder: Path) -> None:
        shutil.copytree(MODEL, folder / "model")

    def act(self, folder: Path) -> None:
        if not (folder / "made").exists():
            convert(folder / "model", folder / "made")

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        assert cut or names(folder) in ([["made", "model"]] if done else [["made", "model"], ["model"]]), names(folder)
        if (folder / "made").exists():
            assert lolrt.load(folder / "made", torch.float32).height == lolrt.load(MODEL, torch.float32).height


class Cache:
    """Writes an embedding to the cache: the complete embedding is there, or nothing."""

    rows = torch.arange(30_000.0).view(-1, 30)

    def begin(self, folder: Path) -> None:
        write_embedding(folder / "e.safetensors", self.rows + 1)

    def act(self, folder: Path) -> None:
        write_embedding(folder / "e.safetensors", self.rows)
        assert (found := read_embedding(folder / "e.safetensors")) is None or torch.equal(found, self.rows)

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        found = read_embedding(folder / "e.safetensors")
        assert found is not None and any(torch.equal(found, rows) for rows in ([self.rows] if done else [self.rows, self.rows + 1]))


class Embeddings:
    """Writes the file of `lolrt encode` over an earlier one."""

    def begin(self, folder: Path) -> None:
        write_embeddings(folder / "e.safetensors", {"old": torch.ones(3000, 30)})

    def act(self, folder: Path) -> None:
        remove_partials(folder / "e.safetensors")
        write_embeddings(folder / "e.safetensors", {"new": torch.ones(3000, 30)})

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        (prompt,) = EmbeddingFile(folder / "e.safetensors")._rows
        assert prompt == "new" or (not done and prompt == "old")
        assert cut or names(folder) == ["e.safetensors"], names(folder)


class State:
    """A session of a server: what it has confirmed is on the disk, complete, and it goes on whatever the disk does."""

    record = Record("one", 0.0, 1.0, "", 1, 9, None, False, 0, [], [], [])

    def begin(self, folder: Path) -> None:
        store = Store(folder / "state", lambda kept: None)
        store.kept("one", 1.0).save(OLD, self.record).result()
        store.close()

    def act(self, folder: Path) -> None:
        told: list[bool] = []
        store = Store(folder / "state", told.append)
        try:
            kept = store.kept("one", 1.0)
        except OSError as error:  # the server says that it cannot keep the session
            raise lolrt.Error(f"cannot keep it: {error}") from error
        kept.note(1, Interaction("e", PROMPT, 1))
        kept.keep(Fragment(1, {"type": "chunk"}, b"video" * 100))
        kept.save(NEW, replace(self.record, sequence=2)).result()
        store.close()
        if not all(told):
            assert kept.failures == told.count(False)  # which /v1/sessions says, beside the last error
            raise lolrt.Error("something could not be kept")

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        store = Store(folder / "state", lambda kept: None)
        found = store.read("one")
        frames = int(found.snapshot.tensors["next_frame"])
        assert frames == 6 if done else frames in (3, 6)
        assert all(fragment.data == b"video" * 100 for fragment in found.fragments)
        store.close()


class Video:
    """Writes a video over an earlier one; it is cut and resumed in the middle."""

    def __init__(self, name: str) -> None:
        self.name = name
        coarse = torch.rand(24, 3, 4, 6, generator=torch.Generator().manual_seed(0))
        self.frames = (torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear") * 255).byte().permute(0, 2, 3, 1).contiguous()

    def begin(self, folder: Path) -> None:
        if "%" not in self.name:
            with lolrt.VideoWriter(folder / self.name, 64, 96, 16) as writer:
                writer.write(self.frames[:5])

    def act(self, folder: Path) -> None:
        with lolrt.VideoWriter(folder / self.name, 64, 96, 16) as writer:
            writer.write(self.frames[:12])
            if self.name.endswith((".mp4", ".m3u8")):
                writer.cut()
            writer.write(self.frames[12:])

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        if done:
            assert not list(folder.glob("*partial*")), names(folder)
        if self.name.endswith(".png"):
            assert all(av.open(str(path)).streams.video[0].height == 64 for path in folder.glob("*.png"))
            assert not done or len(names(folder)) == 24
        elif not self.name.endswith(".m3u8"):  # this file is overwritten as it grows
            with av.open(str(folder / self.name)) as container:
                count = sum(1 for _ in container.decode(video=0))
            assert count == 24 if done else count in (5, 24), count
        elif done:
            assert (folder / self.name).read_text().endswith("#EXT-X-ENDLIST\n")


class Generate:
    """A whole run of the command line, with all files beside its video."""

    options = ("--frames", "21", "--timesteps", "1000", "--first-timesteps", "1000", "--save-every", "9", "--probe", "--latents")

    def begin(self, folder: Path) -> None:
        lolrt.load = lambda *_, **__: tiny  # the running time is not tested

    def act(self, folder: Path) -> None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(["generate", PROMPT, "-o", str(folder / "v.mp4"), *self.options])
        lines = [line for line in said.getvalue().splitlines() if line.startswith("lolrt: ")]
        assert (status == 0 and not lines) or (status == 2 and len(lines) == 1), said.getvalue()
        if status:
            raise lolrt.Error(lines[0])

    def check(self, folder: Path, done: bool, cut: bool) -> None:
        if (folder / "v.snapshot.safetensors").exists():
            assert not done
            Snapshot.read(folder / "v.snapshot.safetensors")
        if (folder / "v.mp4").exists():
            with av.open(str(folder / "v.mp4")) as container:
                assert sum(1 for _ in container.decode(video=0)) == 21
        else:
            assert not done
        if cut:  # the next run is rightly refused while the video of this one is there
            for path in folder.iterdir():
                path.unlink()


OPERATIONS = {
    "save": Save, "resume": Resume, "convert": Convert, "cache": Cache, "embeddings": Embeddings, "state": State, "generate": Generate,
    **{name: (lambda name=name: Video(name)) for name in ("v.mp4", "v.mkv", "v.webm", "v.gif", "v.m3u8", "%03d.png")},
}  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(act: Callable[[], None], arm: Callable[[], None] = lambda: None) -> tuple[int, bytes]:
    """How the operation ended, and how many calls of the kind it made; nothing if the process ended before it could report them."""
    reached_end, told = os.pipe()
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            arm()
            try:
                act()
                status = DONE
            except lolrt.Error as error:
                status = REFUSED if str(error) and "\n" not in str(error) else CRASHED
            except Exception as error:
                if not cli.is_out_of_memory(error):
                    raise
                status = REFUSED  # which the command line says in a line
        except BaseException:
            lib.disarm_failing_call()
            traceback.print_exc()
        os.write(told, str(lib.disarm_failing_call()).encode())
        os._exit(status)
    os.close(told)
    calls = os.read(reached_end, 20)
    os.close(reached_end)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), calls


def fail(name: str, kind: str, scratch: Path, step: int) -> int:
    """Returns how many calls were made to fail."""
    failed = 0
    for error in (ERRORS.get(kind, errno.ENOSPC), 0):
        if error == 0 and kind in ("read", "allocate"):
            continue  # there, a power cut is one at the next write
        for n in itertools.count(1, step):
            folder = scratch / "run"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            operation = OPERATIONS[name]()
            operation.begin(folder)
            arm = lambda: lib.arm_failing_call(KINDS.index(kind) + 1, ctypes.c_long(n), error, str(folder).encode())  # noqa: E731, B023
            status, calls = in_child(lambda: operation.act(folder), arm)  # noqa: B023
            what = f"{name}: {kind} {n} {'fails' if error else 'is the last'}"
            assert status in ((DONE, REFUSED) if error else (DONE, CUT)), f"{what}: status {status}"
            operation.check(folder, status == DONE, status == CUT)
            if status == CUT and not name.startswith(("v.", "%")):  # those refuse, as an earlier video is in the way
                assert in_child(lambda: operation.act(folder))[0] == DONE, f"{what}: the next time"  # noqa: B023
                operation.check(folder, True, False)
            if status == DONE and calls and int(calls) < n:
                break
            failed += 1
    return failed


if __name__ == "__main__":
    name, scratch, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    ends_without_memory = name in ("generate", "state") or name.startswith(("v.", "%"))
    MODEL = synth(scratch / "model", "small") if name == "convert" else None
    for kind in KINDS[: -1 if ends_without_memory else None]:
        print(kind, fail(name, kind, scratch, step), flush=True)
