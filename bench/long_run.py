"""One stream for twelve hours, through servers that are killed on the way.

    python -m bench.long_run out/long-run                 # goes on where it was, however it was stopped; then writes docs/long-run.md
    python -m bench.long_run out/long-run --speed 12     # in as little as an hour: the video plays twelve times as fast
    python -m bench.long_run out/long-run --frames 480 --kills 2 --docs out/long-run     # two minutes, to try it

172,800 latent frames of `tiny` play for twelve hours, and `lolrt serve --state` makes them as they play. The folder holds the state of the
server, and log.csv, a line a chunk. With `--speed` the server has a copy of `tiny` whose video has more frames a second; all else, and
every latent frame, is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import io
import json
import re
import shutil
import signal
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import av
import numpy as np

from bench.report import DOCS, table
from lolrt.bench.machine import describe
from lolrt.bench.serve import Server
from lolrt.lab.phase import kernel
from lolrt.pipeline import MODELS

FRAMES = 172_800
MODEL = "tiny"
ID, PROMPT, SEED = "long", "a red balloon drifting over the hills at dusk", 7
SAVE_SECONDS = 60
LEASE_SECONDS = 7 * 86400
PARTS = 12
# Maxima of the phase kernel count as returns from this frame on, if they are this high and this far from a higher one. The page of `lolrt
# serve` (phase.js) names those above 0.45, the last of which is at frame 251 of the embedded model; these go on to the end.
AFTER_FRAMES, RETURN, APART_FRAMES = 100, 0.25, 24
COLUMNS = (
    "sequence", "first_latent_frame", "num_frames", "made_seconds", "slack_seconds", "sink_mass", "spread", "motion", "from_start",
    "server", "rss_bytes", "unix_seconds",
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the columns of the log; an incomplete last line is cut off."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    rows = list(csv.DictReader(io.StringIO(whole)))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS}


def pictures(data: bytes) -> np.ndarray:
    """float32 [n, height, width, 3], 0 to 1."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32) / 255


def faster_copy(model: Path, copy: Path, speed: int) -> None:
    """Copies the folder of a model, so that its video plays `speed` times as fast."""
    begun = copy.with_name(copy.name + ".begun")
    shutil.rmtree(begun, ignore_errors=True)
    shutil.copytree(model, begun)
    settings = json.loads((begun / "model.json").read_text())
    (begun / "model.json").write_text(json.dumps(settings | {"fps": speed * settings["fps"]}))
    begun.rename(copy)


class LongRun:
    def __init__(self, folder: Path, frames: int, kills: int, speed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._frames = folder, frames
        self._kill_at = [frames * (i + 1) // (kills + 1) for i in range(kills)]
        self._about_path, self._log_path = folder / "about.json", folder / "log.csv"
        log = read(self._log_path)
        self._next = int(log["sequence"][-1]) + 1 if len(log["sequence"]) else 0
        self._reached = int(log["first_latent_frame"][-1]) if self._next else 0
        self.about: dict[str, Any] = {"speed": speed, "servers": [], "gaps": []}
        if self._about_path.exists():
            self.about = json.loads(self._about_path.read_text())
        if self.about["speed"] != speed:
            raise SystemExit(f"{folder} was begun with --speed {self.about['speed']}: go on with that, or begin with another folder")
        self._model = folder / MODEL
        if not self._model.exists():
            faster_copy(MODELS / MODEL, self._model, speed)

    def run(self) -> None:
        while self._reached < self._frames:
            kill_at = next((at for at in self._kill_at if at > self._reached), self._frames)
            options = ["--model", self._model, "--state", self._folder / "state", "--save-every", SAVE_SECONDS, "--max-sessions", 1]
            with Server(*options) as server:
                sessions = [each["id"] for each in json.loads(server.ask("GET", "/v1/sessions"))["data"]]
                if ID not in sessions:
                    if self._next:
                        raise SystemExit(f"{self._folder} has a log and no session to go on with: begin with another folder")
                    wanted = {"session_id": ID, "prompt": PROMPT, "seed": SEED, "probe": True, "lease_seconds": LEASE_SECONDS}
                    server.post("/v1/sessions", wanted)
                begun: dict[str, Any] = {"from": self._next, "unix_seconds": time.time()}
                self.about["servers"].append(begun)
                self._write_about()
                try:
                    asyncio.run(self._watch(server, kill_at))
                finally:
                    with contextlib.suppress(OSError):  # a server that has ended without a signal
                        metrics = server.ask("GET", "/metrics").decode()
                        begun["replayed"] = re.findall(r"^lolrt_chunks_replayed_total(\{.*\} .*)$", metrics, re.M)
                    self._write_about()
                if self._reached < self._frames:
                    server.kill()

    async def _watch(self, server: Server, until: int) -> None:
        """Logs chunks up to a latent frame."""
        init, number = b"", len(self.about["servers"])
        with self._log_path.open("a", newline="") as file:
            log = csv.writer(file)
            if not file.tell():
                log.writerow(COLUMNS)
            async for message, data in server.messages(ID, self._next):
                if message["type"] == "video.start":
                    init = data
                    self.about |= {"radians": message["radians"], "fps": message["fps"], "machine": describe()}
                elif message["type"] == "video.gap":
                    self.about["gaps"].append([message["from"], message["to"]])
                elif message["type"] == "video.chunk_metadata":
                    log.writerow(self._row(message, pictures(init + data), number, server.rss_bytes()))
                    file.flush()
                    self._next, self._reached = message["sequence"] + 1, message["first_latent_frame"]
                    if self._reached >= until:
                        return
                else:
                    raise SystemExit(f"the session said {message}")

    def _row(self, message: dict[str, Any], shown: np.ndarray, number: int, rss_bytes: int) -> list[Any]:
        first = self._folder / "first.npy"
        if message["sequence"] == 0:
            np.save(first, shown[0])
        measured = {
            "sink_mass": np.mean(message["sink_mass"]),
            "spread": shown.std(axis=(1, 2)).min(),
            "motion": np.abs(np.diff(shown, axis=0)).mean(),
            "from_start": np.abs(shown[-1] - np.load(first)).mean(),
        }
        row = {**message, **{name: f"{value:.6f}" for name, value in measured.items()}, "server": number, "rss_bytes": rss_bytes}
        return [row.get(name, time.time()) for name in COLUMNS]

    def _write_about(self) -> None:
        self._about_path.write_text(json.dumps(self.about) + "\n")


def returns(radians: Sequence[Sequence[float]], frames: int) -> np.ndarray:
    """The latent frames at which the phases come back, and the kernel there: [n, 2]."""
    values = np.concatenate(
        [kernel(np.array(radians), at).mean(-1).real for at in np.array_split(np.arange(frames), max(1, frames // 4096))]
    )
    found = []
    for frame in np.flatnonzero(values > RETURN):
        near = values[max(0, frame - APART_FRAMES) : frame + APART_FRAMES + 1]
        if frame > AFTER_FRAMES and values[frame] == near.max():
            found.append((frame, values[frame]))
    return np.array(found).reshape(-1, 2)


def report(folder: Path, docs: Path) -> Path:
    """Writes long-run.md and long-run.png."""
    log, about = read(folder / "log.csv"), json.loads((folder / "about.json").read_text())
    first, frames = log["first_latent_frame"], int(log["first_latent_frame"][-1]) + 3
    parts = np.array_split(np.arange(len(first)), PARTS)
    header = ["latent frames", "chunk made in, ms, median / p99", "late, %", "RSS, MiB, least / most"]
    header += ["contrast, least", "motion, least", "attention on the sinks"]
    rows = []
    for part in parts:
        made, slack, rss = 1000 * log["made_seconds"][part], log["slack_seconds"][part], log["rss_bytes"][part] / 2**20
        row = [f"{first[part[0]]:.0f} - {first[part[-1]]:.0f}", f"{np.median(made):.0f} / {np.percentile(made, 99):.0f}"]
        row += [f"{100 * np.mean(slack[~np.isnan(slack)] < 0):.1f}", f"{rss.min():.0f} / {rss.max():.0f}"]
        row += [f"{log['spread'][part].min():.3f}", f"{log['motion'][part].min():.4f}", f"{np.mean(log['sink_mass'][part]):.4f}"]
        rows.append(row)
    found = returns(about["radians"], frames)
    at = np.searchsorted(first, found[:, 0], side="right") - 1
    plot(log, found[:, 0], docs / "long-run.png")
    machine = "\n".join(f"- {name}: {value}" for name, value in about["machine"].items())
    numbers = log["sequence"]
    whole = len(numbers) == numbers[-1] + 1 and not about["gaps"] and bool((np.diff(numbers) == 1).all())
    replayed = [" ".join(server.get("replayed", [])) or "none" for server in about["servers"]]
    share = "" if frames >= FRAMES else f", of the {FRAMES:,} of twelve hours"
    speed = about["speed"]
    hours = 4 * frames * speed / about["fps"] / 3600
    pace = "as it plays" if speed == 1 else f"as it plays, at {speed} times the speed of `{MODEL}`'s video, deadlines included,"
    path = docs / "long-run.md"
    path.write_text(
        f"# A long stream\n\n{frames:,} latent frames of `{MODEL}`{share}, {hours:.2f} hours of video, by "
        f"`python -m bench.long_run`: made {pace} by {len(about['servers'])} servers one after another, each but the last killed "
        "by SIGKILL. "
        f"Written on {date.today()}.\n\n{machine}\n\n"
        f"- Chunks: {len(numbers)}; {'each came once, in order' if whole else 'NOT each came once and in order'}.\n"
        f"- Servers began with chunks {', '.join(str(server['from']) for server in about['servers'])}; chunks that each made again, by "
        f"whether they had the same bytes: {'; '.join(replayed)}.\n\n{table(header, rows)}\n\n"
        "Contrast is the least standard deviation of a picture's values over its pixels, motion the mean change from one picture to the "
        "next, of values from 0 to 1; no chunk had numbers that are not finite, which end a session.\n\n![Over time](long-run.png)\n\n"
        f"## Returns of the phases\n\n{_returns(log, found, at)}\n"
    )
    return path


def _returns(log: dict[str, np.ndarray], found: np.ndarray, at: np.ndarray) -> str:
    """What the log says of the chunks in which the phases return."""
    if not len(found):
        return f"The phase kernel has no maximum past frame {AFTER_FRAMES} above {RETURN}."
    mass, distance = log["sink_mass"], log["from_start"]
    later = log["first_latent_frame"] > AFTER_FRAMES
    rows = [
        [name, *(f"{value:.4f}" for value in (np.median(each[at]), each[at].max(), np.median(each[later]), each[later].max()))]
        for name, each in (("attention on the sinks", mass), ("distance to the first picture", distance))
    ]
    listed = [[f"{frame:.0f}", f"{value:.3f}", f"{mass[i]:.4f}", f"{distance[i]:.4f}"] for (frame, value), i in zip(found, at, strict=True)]
    header = ["", "median at returns", "most", f"median of all chunks past frame {AFTER_FRAMES}", "most"]
    return (
        f"The phase kernel, the mean cosine that a frame's phases have against the first frame's, has {len(found)} maxima past frame "
        f"{AFTER_FRAMES} above {RETURN}.\n\n{table(header, rows)}\n\n"
        + table(["latent frame", "kernel", "attention on the sinks", "distance to the first picture"], listed)
    )


def plot(log: dict[str, np.ndarray], found: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(9, 8), sharex=True, constrained_layout=True)
    frames = log["first_latent_frame"]
    lines = {"RSS, MiB": log["rss_bytes"] / 2**20, "chunk, ms": 1000 * log["made_seconds"], "mass on sinks": log["sink_mass"],
             "from the start": log["from_start"]}  # fmt: skip
    for axis, (name, values) in zip(axes, lines.items(), strict=True):
        axis.plot(frames, values, linewidth=0.6)
        axis.set(ylabel=name, ylim=(0, 1.1 * values.max()))
        for frame in found:
            axis.axvline(frame, color="tab:red", linewidth=0.3)
    axes[-1].set_xlabel("latent frame")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.long_run", description="Makes one stream of twelve hours, and writes of it.")
    parser.add_argument("folder", type=Path, help="of the log and the server's state; what is there is gone on with")
    parser.add_argument("--frames", type=int, default=FRAMES, help="latent frames, four a second of tiny")
    parser.add_argument("--kills", type=int, default=5, help="how often the server is killed on the way")
    parser.add_argument("--speed", type=int, default=1, help="how many times as fast the video plays")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where long-run.md goes")
    parser.add_argument("--report", action="store_true", help="make nothing: write of what is there")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not arguments.report:
        LongRun(arguments.folder, arguments.frames, arguments.kills, arguments.speed).run()
    print(report(arguments.folder, arguments.docs))


if __name__ == "__main__":
    main()
