"""HLS and live addresses, read by FFmpeg's own demuxers and compared with the mp4 of the same frames."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from full_disk import full_after

import lolrt
from lolrt import cli
from lolrt.media.address import AddressWriter, check_address
from lolrt.media.destination import Position
from lolrt.media.hls import Playlist

pytestmark = pytest.mark.whole

FPS = 16


def pictures(count: int) -> torch.Tensor:
    """Coarse noise that changes with time, so that the state of a codec shows in the result."""
    coarse = torch.randint(0, 256, (count, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)


def calm(count: int) -> torch.Tensor:
    """One picture that gets lighter and darker: without scene changes, at which an encoder would insert key frames."""
    return pictures(1) // 2 + (torch.arange(count) % 100).to(torch.uint8).reshape(-1, 1, 1, 1)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def listed(playlist: Path) -> list[tuple[Fraction, Path]]:
    """Seconds and path of each segment."""
    found = re.findall(r"#EXTINF:([\d.]+),\n(\S+)\n", playlist.read_text())
    return [(Fraction(seconds), playlist.parent / uri) for seconds, uri in found]


def tag(text: str, name: str) -> int:
    (value,) = re.findall(rf"^#EXT-X-{name}:(\d+)$", text, re.MULTILINE)
    return int(value)


def check(playlist: Path) -> None:
    """Checks what RFC 8216 requires of the playlist, and the content of each segment."""
    text = playlist.read_text()
    assert text.startswith("#EXTM3U\n") and text.endswith("\n")
    (init,) = re.findall(r'^#EXT-X-MAP:URI="(.+)"$', text, re.MULTILINE)
    for seconds, path in listed(playlist):
        assert round(seconds) <= tag(text, "TARGETDURATION")
        alone = playlist.parent / "alone.mp4"
        alone.write_bytes((playlist.parent / init).read_bytes() + path.read_bytes())
        with av.open(str(alone)) as container:
            frames = list(container.decode(video=0))
        alone.unlink()
        assert frames[0].key_frame and len(frames) == seconds * FPS


def test_generate_writes_the_bits_of_the_mp4(tmp_path, tiny):
    begin = ["generate", tiny.example_prompts[0], "--frames", "40", "--timesteps", "1000", "--threads", "1", "--quiet"]
    assert cli.main([*begin, "-o", str(tmp_path / "live.m3u8")]) == 0
    assert cli.main([*begin, "-o", str(tmp_path / "live.mp4")]) == 0
    playlist = tmp_path / "live.m3u8"
    check(playlist)
    assert sum(seconds for seconds, _ in listed(playlist)) == Fraction(40, FPS)
    assert playlist.read_text().endswith("#EXT-X-ENDLIST\n") and "#EXT-X-PLAYLIST-TYPE:EVENT" in playlist.read_text()
    parts = [tmp_path / "live" / "init.mp4", *(path for _, path in listed(playlist))]
    assert b"".join(part.read_bytes() for part in parts) == (tmp_path / "live.mp4").read_bytes()
    assert sorted(parts) == sorted((tmp_path / "live").iterdir())
    assert np.array_equal(decode(playlist), decode(tmp_path / "live.mp4")) and len(decode(playlist)) == 40


def test_a_window_of_time(tmp_path):
    """The playlist covers it at every moment, and segments that have just left it are still on the disk. At the end the disk has no
    others."""
    playlist, frames = tmp_path / "live.m3u8", calm(12)
    seen: set[str] = set()
    with lolrt.VideoWriter(playlist, 64, 96, FPS, dvr_seconds=3) as writer:
        for count in range(20):
            writer.write(frames)
            writer.cut()  # a segment
            text = playlist.read_text()
            total = sum(seconds for seconds, _ in listed(playlist))
            assert min(3, 0.75 * (count + 1)) <= total < 4 and "PLAYLIST-TYPE" not in text
            assert tag(text, "MEDIA-SEQUENCE") == max(1, count + 1 - 3) and tag(text, "TARGETDURATION") == 1
            there = {path.name for path in (tmp_path / "live").iterdir()}
            assert {path.name for _, path in listed(playlist)} <= there
            # A segment may be removed four seconds after it was last listed.
            assert not seen or {f"{number:08d}.m4s" for number in range(max(1, count + 1 - 3 - 5), count + 2)} <= there
            seen |= there
    check(playlist)
    assert len(seen) == 21 and len(list((tmp_path / "live").iterdir())) <= 12
    assert len(decode(playlist)) == 4 * 12
    for seconds in (0.5, 2.9, float("nan")):
        with pytest.raises(lolrt.Error, match="too short to play; expected at least 3 s"):
            Playlist("", str, 1, seconds)


def film(playlist: Path, at: int, what: str, dvr_seconds: float | None) -> None:
    """100 frames with cuts every 10. After some frames the run is killed, or ends, and another one continues from there."""
    frames = pictures(100)
    writer = lolrt.VideoWriter(playlist, 64, 96, FPS, dvr_seconds=dvr_seconds)
    for begun in range(0, 100, 10):
        writer.write(frames[begun : begun + 10])
        cut = writer.cut()
        if begun + 10 == at:
            if what == "kill":
                writer.write(frames[at : at + 25])
                fcntl.flock(writer._destination._init, fcntl.LOCK_UN)  # type: ignore[attr-defined]
                (playlist.parent / f"{playlist.name}.99999999.partial").write_bytes(b"half")
            else:
                writer.__exit__(None, None, None)
            writer = lolrt.VideoWriter(playlist, 64, 96, FPS, resume=cut, dvr_seconds=dvr_seconds)
    writer.__exit__(None, None, None)


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what, dvr_seconds", [("end", 3), ("kill", None), ("kill", 3)])
def test_a_film_that_goes_on_is_the_film_that_was_only_cut(what, dvr_seconds, tmp_path):
    film(tmp_path / "cut" / "x.m3u8", 0, "", dvr_seconds)
    film(tmp_path / "on" / "x.m3u8", 60, what, dvr_seconds)
    check(tmp_path / "on" / "x.m3u8")
    assert content(tmp_path / "on") == content(tmp_path / "cut")
    assert len(decode(tmp_path / "on" / "x.m3u8")) == (100 if dvr_seconds is None else 50)


def test_another_video_is_not_gone_on_with(tmp_path):
    playlist = tmp_path / "x.m3u8"
    with lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
        writer.write(pictures(9))
        cut = writer.cut()
    segment = tmp_path / "x" / "00000001.m4s"
    whole = segment.read_bytes()
    for damaged, told in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is not the video"),
        (whole[:-1], "gone or damaged"),
        (None, "gone or damaged"),
    ):
        segment.unlink() if damaged is None else segment.write_bytes(damaged)
        before = content(tmp_path)
        with pytest.raises(lolrt.OutputError, match=told):
            lolrt.VideoWriter(playlist, 64, 96, FPS, resume=cut)
        assert content(tmp_path) == before
    with pytest.raises(lolrt.OutputError, match=r"cannot go on with .*y\.m3u8"):
        lolrt.VideoWriter(tmp_path / "y.m3u8", 64, 96, FPS, resume=cut)


def test_whose_a_video_is(tmp_path):
    """A complete one is overwritten; one that is being written, or was not finished, is not."""
    playlist = tmp_path / "x.m3u8"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("of somebody")
    for count in (40, 9):
        with lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
            writer.write(pictures(count))
            with pytest.raises(lolrt.OutputError, match=r"another run is writing .*init\.mp4"):
                lolrt.VideoWriter(playlist, 64, 96, FPS)
    assert len(decode(playlist)) == 9 and len(list((tmp_path / "x").iterdir())) == 3
    with contextlib.suppress(KeyboardInterrupt), lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
        writer.write(pictures(20))
        raise KeyboardInterrupt
    assert "ENDLIST" not in playlist.read_text() and len(decode_unended(playlist)) == 20
    before = content(tmp_path)
    with pytest.raises(lolrt.OutputError, match="what an earlier run had written when it was stopped"):
        lolrt.VideoWriter(playlist, 64, 96, FPS)
    assert content(tmp_path) == before


def test_a_complete_video_stays_until_the_next_one_has_a_segment(tmp_path):
    playlist, frames = tmp_path / "x.m3u8", pictures(40)
    with lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
        writer.write(frames)
    before = content(tmp_path)
    with contextlib.suppress(KeyboardInterrupt), lolrt.VideoWriter(playlist, 64, 96, FPS):
        assert content(tmp_path) == before
        raise KeyboardInterrupt
    assert content(tmp_path) == before, "a run that makes nothing changes nothing"
    with lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
        for frame in frames.flip(0).split(1):
            writer.write(frame)
            assert content(tmp_path) == before or len(listed(playlist)) <= writer._encoder.frames // 10, "the old one, or the new one"
    assert content(tmp_path) != before and len(decode(playlist)) == 40
    assert np.array_equal(decode(playlist)[0], decode_alone(frames.flip(0), tmp_path / "y.mp4")[0])


def decode_alone(frames: torch.Tensor, path: Path) -> list[np.ndarray]:
    with lolrt.VideoWriter(path, 64, 96, FPS) as writer:
        writer.write(frames)
    return decode(path)


def decode_unended(playlist: Path) -> list[np.ndarray]:
    ended = playlist.with_name("ended.m3u8")
    ended.write_text(playlist.read_text() + "#EXT-X-ENDLIST\n")
    frames = decode(ended)
    ended.unlink()
    return frames


def test_what_fails_before_the_first_picture_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), lolrt.VideoWriter(tmp_path / "x.m3u8", 64, 96, FPS):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    playlist = tmp_path / "x.m3u8"
    told = r"cannot go on writing .*x\.m3u8: No space left on device; what was written is in .*x\.m3u8"
    with pytest.raises(lolrt.OutputError, match=told), lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
        writer.write(pictures(20))
        writer.cut()
        monkeypatch.setattr(Path, "write_bytes", full)
        writer.write(pictures(20))
        writer.cut()
    assert len(decode_unended(playlist)) == 20


def test_an_end_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    told = r"cannot go on writing .*x\.m3u8: No space left on device; what was written is in .*x\.m3u8"
    with pytest.raises(lolrt.OutputError, match=told), lolrt.VideoWriter(tmp_path / "x.m3u8", 64, 96, FPS) as writer:
        writer.write(pictures(20))
        writer.cut()
        monkeypatch.setattr(os, "fsync", full)
    assert len(decode_unended(tmp_path / "x.m3u8")) == 20


def test_a_reader_sees_no_half_of_anything(tmp_path):
    """Whenever it reads, the playlist is complete, and the segments that it names exist."""
    playlist, done, looks = tmp_path / "x.m3u8", threading.Event(), []

    def look() -> None:
        while not done.is_set():
            if playlist.exists():
                text = playlist.read_text()
                sizes = [path.stat().st_size for _, path in listed(playlist)]
                looks.append(text.startswith("#EXTM3U\n") and text.endswith("\n") and all(sizes))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        with lolrt.VideoWriter(playlist, 64, 96, FPS) as writer:
            for _ in range(40):
                writer.write(pictures(2))
                writer.cut()
    finally:
        done.set()
        reader.join()
    assert len(looks) > 40 and all(looks)


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


RECEIVES = """
import sys, av, numpy as np
address, output = sys.argv[1:]
frames = []
try:
    with av.open(address, options={"listen": "1"} if address.startswith("rtmp") else {}) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
except av.FFmpegError:
    pass  # nothing more comes
np.save(output, frames)
"""


@pytest.mark.parametrize("protocol, end", [("udp", "?timeout=2000000"), ("rtmp", "/live/key")])
def test_a_receiver_at_an_address(protocol, end, tmp_path):
    """All frames come, as FFmpeg in another process receives them, and never early."""
    port = free_port(socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    address, sockets = f"{protocol}://127.0.0.1:{port}{end}", Path("/proc/net/udp" if protocol == "udp" else "/proc/net/tcp")
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVES, address, str(tmp_path / "came.npy")])
    while f"0100007F:{port:04X} " not in sockets.read_text():  # until it listens
        assert receiver.poll() is None
        time.sleep(0.05)
    frames, begun = pictures(40), time.monotonic()
    with AddressWriter(address, 64, 96, FPS) as writer:
        for at in range(0, 40, 8):
            writer.write(frames[at : at + 8])
    assert time.monotonic() - begun >= 39 / FPS - 1
    receiver.wait(timeout=60)
    came = np.load(tmp_path / "came.npy")
    assert came.shape == (40, 256, 384, 3)
    assert np.abs(came[:, 32::64, 32::64].astype(int) - frames.numpy()[:, 8::16, 8::16]).max() < 12


def test_addresses_that_cannot_be(tiny, capsys):
    with pytest.raises(lolrt.OutputError, match=r"begins with ftp://; expected one of udp://, srt://, rtmp://"):
        check_address("ftp://host/x.mp4")
    with pytest.raises(lolrt.OutputError, match="cannot send video by rtmp: Connection refused") as told:
        AddressWriter(f"rtmp://127.0.0.1:{free_port(socket.SOCK_STREAM)}/live/secret", 64, 96, FPS)
    assert "secret" not in str(told.value)
    try:
        av.open("srt://", "r", format="mpegts")
    except av.ProtocolNotFoundError:
        with pytest.raises(lolrt.OutputError, match="has no srt"):
            check_address("srt://127.0.0.1:9000")
    except av.FFmpegError:
        check_address("srt://127.0.0.1:9000")
    for option, told_of in ((["--save-every", "9"], "needs a file"), (["--probe"], "needs a file"), (["--dvr", "9"], "for an .m3u8")):
        assert cli.main(["generate", tiny.example_prompts[0], "-o", "udp://127.0.0.1:9", *option]) == 2
        assert told_of in capsys.readouterr().err
    with pytest.raises(lolrt.OutputError, match="cannot be gone on with"):
        lolrt.VideoWriter("-", 64, 96, FPS, resume=Position(9, 1, 100, 0))


def test_a_run_that_saves_goes_on_with_its_segments(tmp_path, tiny, capsys):
    """The video of a run that was stopped by a full disk and resumed equals that of a run that was not stopped."""
    begin = ["generate", tiny.example_prompts[0], "--frames", "57", "--save-every", "9", "--timesteps", "1000", "--threads", "1", "--quiet"]
    assert cli.main([*begin, "-o", str(tmp_path / "whole" / "x.m3u8")]) == 0
    playlist = tmp_path / "on" / "x.m3u8"
    with full_after(4):
        assert cli.main([*begin, "-o", str(playlist)]) == 2
    assert cli.main(["generate", "--resume", str(playlist.with_name("x.snapshot.safetensors")), "--quiet"]) == 0
    assert content(tmp_path / "on") == content(tmp_path / "whole")
    assert cli.main([*begin, "-o", str(playlist), "--dvr", "3", "--save-every", "49"]) == 2
    assert "--save-every 49 is longer than the 3 s that --dvr keeps" in capsys.readouterr().err


def test_a_name_of_any_bytes(tmp_path):
    """As file systems have them, of which the playlist names a folder."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/v\xff.m3u8"))
    with lolrt.VideoWriter(path, 64, 96, FPS) as writer:
        writer.write(pictures(2 * FPS))
    named = re.findall(rb"^[^#\n].*$", path.read_bytes(), re.MULTILINE)
    assert named and all(name.startswith(b"v\xff/") and (path.parent / os.fsdecode(name)).is_file() for name in named)
