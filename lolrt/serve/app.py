"""The HTTP application: its routes, and the responses for errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lolrt import __version__
from lolrt.errors import Error, OutputError
from lolrt.fields import fields_of
from lolrt.files import temporary_folder
from lolrt.pipeline import Pipeline
from lolrt.serve import clips, realtime, watching, webrtc
from lolrt.serve.describe import describe
from lolrt.serve.errors import NoRoomError, UnavailableError, code_of, message_of, status_of
from lolrt.serve.guard import Guard
from lolrt.serve.hub import State
from lolrt.serve.protocol import Branch, Interact, NewSession
from lolrt.serve.sessions import Keep, Sessions
from lolrt.serve.settings import Settings
from lolrt.serve.start_image import start_of
from lolrt.serve.watching import client_of

PAGE = Path(__file__).parent / "page"
# The Retry-After header of a response that says that the server is full.
RETRY_SECONDS = 5
# The most snapshots that are written and sent at the same time. Each is as large as the pages of its session.
MOST_SNAPSHOTS = 4


def make_app(pipe: Pipeline, settings: Settings, keep: Keep | None = None) -> FastAPI:
    """keep: as in `Sessions`."""
    sessions = Sessions(pipe, settings, keep)
    jobs, peers = clips.Clips(sessions), webrtc.Peers(sessions)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await sessions.start()
        making = asyncio.create_task(jobs.run())
        yield
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        await peers.close_all()
        await sessions.close()

    # No pages of API documentation: they load scripts from other servers.
    app = FastAPI(title="lolrt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.sessions = sessions
    app.add_middleware(Guard, token=settings.token)
    _add_errors(app, sessions)
    _add_models(app, sessions, peers)
    _add_sessions(app, sessions)
    watching.add_routes(app, sessions)
    realtime.add_routes(app, sessions)
    webrtc.add_routes(app, sessions, peers)
    clips.add_routes(app, sessions, jobs)
    app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))
    return app


def _add_errors(app: FastAPI, sessions: Sessions) -> None:
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status, code = status_of(error), code_of(error)
        sessions.metrics.refused.labels(code).inc()
        headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) or code == "client_limit" else getattr(error, "headers", None)
        return JSONResponse({"error": {"message": message_of(error), "code": code}}, status, headers)

    async def fail(request: Request, error: Exception) -> JSONResponse:
        """Answers an error that is a bug in the server; its traceback is in the log."""
        return JSONResponse({"error": {"message": f"{type(error).__name__} in the server", "code": "internal"}}, 500)

    for kind in (Error, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(Exception, fail)


def _add_models(app: FastAPI, sessions: Sessions, peers: webrtc.Peers) -> None:
    pipe = sessions.pipe

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        positions = next(field.choices for field in fields_of("Rope") if field.name == "positions")
        model = {
            "id": pipe.name,
            "object": "model",
            "owned_by": "lolrt",
            "width": pipe.width,
            "height": pipe.height,
            "fps": pipe.fps,
            "temporal_factor": pipe.vae.config.temporal_factor,
            "mime": sessions.factory.mime,
            "webrtc": peers.available,
            "lora_modules": sorted(sessions.settings.lora_modules),
            "example_prompts": list(pipe.example_prompts),
            "positions": list(positions),
            "rope": {"sigma": pipe.rope.sigma, "positions": pipe.rope.positions},
            "window": {"sink_frames": pipe.window.sink_frames, "recent_frames": pipe.window.recent_frames},
        }
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        if not sessions.ready:
            raise UnavailableError("the server is ending", "ending")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(sessions.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class SentFile(FileResponse):
    """A file to save, and what is closed when it was sent, or could not be."""

    def __init__(self, path: Path, stack: contextlib.AsyncExitStack) -> None:
        super().__init__(path, media_type="application/octet-stream", filename=path.name)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


def _add_sessions(app: FastAPI, sessions: Sessions) -> None:
    snapshots = asyncio.Semaphore(MOST_SNAPSHOTS)

    @app.post("/v1/sessions", status_code=201)
    async def create(wanted: NewSession, request: Request) -> dict[str, Any]:
        start = await start_of(wanted.start, sessions.pipe)
        return describe(sessions, await sessions.open(wanted, client_of(request), start=start))

    @app.get("/v1/sessions")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [describe(sessions, session) for session in sessions]}

    @app.get("/v1/sessions/{id}")
    async def one(id: str) -> dict[str, Any]:
        return describe(sessions, sessions.find(id))

    @app.delete("/v1/sessions/{id}", status_code=204)
    async def delete(id: str) -> None:
        await sessions.end(sessions.get(id), State("ended", "closed"))

    @app.post("/v1/sessions/{id}/interactions", status_code=202)
    async def interact(id: str, asked: Interact) -> dict[str, Any]:
        taken = await sessions.interact(sessions.get(id), asked)
        return {"type": "session.interaction.queued", "event_id": taken.event_id, "sequence": taken.sequence}

    @app.post("/v1/sessions/{id}/pause")
    async def pause(id: str) -> dict[str, Any]:
        session = sessions.get(id)
        await sessions.pause(session, True)
        return describe(sessions, session)

    @app.post("/v1/sessions/{id}/continue")
    async def go_on(id: str) -> dict[str, Any]:
        session = sessions.get(id)
        await sessions.pause(session, False)
        return describe(sessions, session)

    @app.post("/v1/sessions/{id}/branch", status_code=201)
    async def branch(id: str, request: Request, wanted: Branch | None = None) -> dict[str, Any]:
        return describe(sessions, await sessions.branch(sessions.get(id), wanted or Branch(), client_of(request)))

    @app.get("/v1/sessions/{id}/snapshot", response_class=FileResponse)
    async def snapshot(id: str) -> Response:
        session = sessions.get(id)
        if snapshots.locked():
            raise NoRoomError(f"{MOST_SNAPSHOTS} snapshots are being sent, and there is room for no more: wait")
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(snapshots)
            taken = await sessions.snapshot(session)
            try:
                folder = temporary_folder()
                stack.callback(folder.cleanup)
                path = Path(folder.name) / f"{id}.snapshot.safetensors"
                await asyncio.to_thread(taken.write, path)
            except OutputError as error:
                raise UnavailableError(f"the snapshot cannot be written: {error}", "storage") from error
            return SentFile(path, stack.pop_all())
