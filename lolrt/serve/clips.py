"""`/v1/videos`: jobs that make a clip of a given length, in the format of OpenAI's API. A clip is a session that gives way to all others,
with one viewer, which writes a file."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from prometheus_client.core import GaugeMetricFamily
from torch import Tensor

from lolrt.errors import Error, printable
from lolrt.files import temporary_folder
from lolrt.serve.errors import ClientLimitError, ConflictError, NoRoomError, NotFoundError, RequestError
from lolrt.serve.hub import Fragment, Gap, State
from lolrt.serve.protocol import NewClip, Stream
from lolrt.serve.sessions import Session, Sessions
from lolrt.serve.start_image import start_of
from lolrt.serve.watching import client_of

DEFAULT_SECONDS = 4.0
# The most clips that are not finished yet, and the most in all.
MOST_QUEUED = 8
MOST_KEPT = 32
KEPT_SECONDS = 3600
# Between two attempts to open a session.
RETRY_SECONDS = 0.5


@dataclass(eq=False)
class Clip:
    wanted: Stream
    frames: int
    client: str
    start: Tensor | None
    session: Session | None = None
    """The session that makes it, meanwhile."""
    id: str = field(default_factory=lambda: f"video_{uuid.uuid4().hex}")
    status: str = "queued"
    made: int = 0
    """Video frames made so far."""
    error: str = ""
    created: float = field(default_factory=time.time)
    completed: float | None = None
    over_at: float | None = None
    """When it was, by the clock that nobody sets."""

    @property
    def over(self) -> bool:
        return self.status in ("completed", "failed")

    def end(self, status: str, error: str = "") -> None:
        self.status, self.error, self.completed, self.over_at = status, error, time.time(), time.monotonic()

    @property
    def expires(self) -> float | None:
        return None if self.completed is None else self.completed + KEPT_SECONDS


class Clips:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions, self._clips = sessions, dict[str, Clip]()
        self._folder = temporary_folder()
        self._added = asyncio.Event()
        sessions.metrics.watch(self._gauges)

    def _gauges(self) -> list[GaugeMetricFamily]:
        videos = GaugeMetricFamily("lolrt_videos", "Clips, by status", labels=["status"])
        for status in ("queued", "in_progress", "completed", "failed"):
            videos.add_metric([status], sum(clip.status == status for clip in self._clips.values()))
        return [videos]

    def path(self, clip: Clip) -> Path:
        return Path(self._folder.name) / f"{clip.id}.mp4"

    async def run(self) -> None:
        """Makes one clip after another, until this task is cancelled."""
        try:
            while True:
                self._added.clear()
                if not await self._make_next():
                    waits = any(clip.status == "queued" for clip in self._clips.values())
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._added.wait(), RETRY_SECONDS if waits else None)
        finally:
            self._folder.cleanup()

    async def _make_next(self) -> bool:
        """Makes the first clip for which there is room, and returns whether there was one. A client that has all the sessions that it may
        have lets others by."""
        full = set[str]()
        for clip in [clip for clip in self._clips.values() if clip.status == "queued"]:
            if clip.client in full or clip.id not in self._clips:
                continue
            try:
                await self._make(clip)
            except NoRoomError:
                return False
            except ClientLimitError:
                full.add(clip.client)
                continue
            except (Error, OSError) as error:
                self._fail(clip, str(error))
            except Exception as error:  # such as too little memory: the clips that follow may be made yet
                self._fail(clip, f"{type(error).__name__} in the server")
            return True
        return False

    def add(self, clip: Clip) -> None:
        """Puts a clip into the queue. Raises `NoRoomError`."""
        self._expire()
        if sum(not one.over for one in self._clips.values()) >= MOST_QUEUED:
            raise NoRoomError(f"{MOST_QUEUED} clips wait already: wait until one is made")
        for old in [one for one in self._clips.values() if one.over][: max(0, len(self._clips) + 1 - MOST_KEPT)]:
            self.remove(old)
        self._clips[clip.id] = clip
        self._added.set()

    def get(self, id: str) -> Clip:
        """The clip with this id. Raises `NotFoundError`."""
        self._expire()
        if id not in self._clips:
            raise NotFoundError("there is no such video: it was removed, or the server has restarted")
        return self._clips[id]

    def __iter__(self) -> Any:
        self._expire()
        return iter(list(self._clips.values()))

    async def delete(self, clip: Clip) -> None:
        """Forgets a clip, at once also if it is being made."""
        self.remove(clip)
        if clip.session is not None:
            await self._sessions.end(clip.session, State("ended", "closed"))

    def remove(self, clip: Clip) -> None:
        """Forgets a clip that is not being made, and deletes its file."""
        self._clips.pop(clip.id, None)
        with contextlib.suppress(OSError):
            self.path(clip).unlink()

    def _expire(self) -> None:
        for clip in list(self._clips.values()):
            if clip.over_at is not None and clip.over_at + KEPT_SECONDS < time.monotonic():
                self.remove(clip)

    def _fail(self, clip: Clip, message: str) -> None:
        clip.end("failed", printable(message))
        with contextlib.suppress(OSError):
            self.path(clip).unlink()

    async def _make(self, clip: Clip) -> None:
        """Makes a clip. Raises `NoRoomError` and `ClientLimitError` if it has to wait, and `lolrt.Error` and OSError if it fails."""
        session = clip.session = await self._sessions.open(
            clip.wanted, clip.client, start=clip.start, frames=clip.frames, background=True, lasts=False
        )
        clip.status = "in_progress"
        session.hub.viewers += 1
        try:
            if clip.id not in self._clips:
                return
            with self.path(clip).open("wb") as file:
                file.write(self._sessions.factory.init)
                async for event in session.hub.follow(0):
                    if clip.id not in self._clips:
                        return
                    if isinstance(event, Fragment):
                        await asyncio.to_thread(file.write, event.data)
                        clip.made += event.about["num_frames"]
                    elif isinstance(event, Gap):
                        raise RequestError("the disk was slower than the video was made")
                    elif event.name == "ended" and event.reason != "complete":
                        raise RequestError(event.message or f"its session ended: {event.reason}")
            clip.end("completed")
        finally:
            session.hub.viewers -= 1
            clip.session = None
            await self._sessions.end(session, State("ended", "closed"))


def add_routes(app: FastAPI, sessions: Sessions, clips: Clips) -> None:
    pipe = sessions.pipe

    def about(clip: Clip) -> dict[str, Any]:
        return {
            "id": clip.id,
            "object": "video",
            "model": pipe.name,
            "status": clip.status,
            "progress": 100 * clip.made // clip.frames,
            "created_at": int(clip.created),
            "completed_at": None if clip.completed is None else int(clip.completed),
            "expires_at": None if clip.expires is None else int(clip.expires),
            "prompt": clip.wanted.prompt,
            "size": f"{pipe.width}x{pipe.height}",
            "seconds": f"{clip.frames / pipe.fps:g}",
            "error": {"code": "failed", "message": clip.error} if clip.error else None,
        }

    @app.post("/v1/videos")
    async def create(wanted: NewClip, request: Request) -> dict[str, Any]:
        wanted.check(pipe.name, pipe.width, pipe.height, pipe.fps)
        frames = wanted.frames(pipe.fps) or round(DEFAULT_SECONDS * pipe.fps)
        if frames > sessions.settings.max_video_seconds * pipe.fps:
            raise RequestError(f"a video of {frames / pipe.fps:g} s; expected {sessions.settings.max_video_seconds:g} s at most")
        sessions.factory.files_of(wanted.adapters() or [])  # raises here for adapters that the server does not offer
        await asyncio.to_thread(pipe.encode_text, wanted.prompt)  # raises here for a prompt that the model cannot take
        stream = Stream(
            prompt=wanted.prompt, seed=wanted.seed or 0, rope=wanted.rope, window=wanted.window, lora=wanted.adapters()
        )  # fmt: skip
        clip = Clip(stream, frames, client_of(request), await start_of(wanted.start, pipe))
        clips.add(clip)
        return about(clip)

    @app.get("/v1/videos")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [about(clip) for clip in clips]}

    @app.get("/v1/videos/{id}")
    async def one(id: str) -> dict[str, Any]:
        return about(clips.get(id))

    @app.get("/v1/videos/{id}/content", response_class=FileResponse)
    async def content(id: str) -> Response:
        clip = clips.get(id)
        if clip.status != "completed":
            raise ConflictError(f"the video is not there: its status is {clip.status}", "not_completed")
        return FileResponse(clips.path(clip), media_type="video/mp4", filename=f"{clip.id}.mp4")

    @app.delete("/v1/videos/{id}")
    async def delete(id: str) -> dict[str, Any]:
        await clips.delete(clips.get(id))
        return {"id": id, "object": "video.deleted", "deleted": True}
