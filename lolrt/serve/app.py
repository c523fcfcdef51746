"""The server: its routes over HTTP, and how errors are told."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from lolrt.errors import Error
from lolrt.fields import fields_of
from lolrt.pipeline import Pipeline
from lolrt.serve import realtime, watching
from lolrt.serve.errors import code_of, message_of, status_of
from lolrt.serve.hub import State
from lolrt.serve.protocol import Branch, Interact, Stream
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
# When to ask again for room that there is not.
RETRY_SECONDS = 5


def make_app(pipe: Pipeline, settings: Settings) -> FastAPI:
    sessions = Sessions(pipe, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(sessions.run())
        await asyncio.sleep(0)  # it starts the engine
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    app = FastAPI(title="lolrt", lifespan=lifespan)
    app.state.sessions = sessions
    for kind in (Error, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    _add_models(app, pipe)
    _add_sessions(app, sessions)
    watching.add_routes(app, sessions)
    realtime.add_routes(app, sessions)
    app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))
    return app


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 429 else getattr(error, "headers", None)
    return JSONResponse({"error": {"message": message_of(error), "code": code_of(error)}}, status, headers)


def _add_models(app: FastAPI, pipe: Pipeline) -> None:
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
            "example_prompts": list(pipe.example_prompts),
            "positions": list(positions),
            "window": {"sink_frames": pipe.window.sink_frames, "recent_frames": pipe.window.recent_frames},
        }
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}


def _add_sessions(app: FastAPI, sessions: Sessions) -> None:
    @app.post("/v1/sessions", status_code=201)
    async def create(wanted: Stream) -> dict[str, Any]:
        return sessions.describe(await sessions.open(wanted))

    @app.get("/v1/sessions")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [sessions.describe(session) for session in sessions]}

    @app.get("/v1/sessions/{id}")
    async def one(id: str) -> dict[str, Any]:
        return sessions.describe(sessions.get(id))

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
        await sessions.pause(session)
        return sessions.describe(session)

    @app.post("/v1/sessions/{id}/continue")
    async def go_on(id: str) -> dict[str, Any]:
        session = sessions.get(id)
        await sessions.go_on(session)
        return sessions.describe(session)

    @app.post("/v1/sessions/{id}/branch", status_code=201)
    async def branch(id: str, wanted: Branch | None = None) -> dict[str, Any]:
        return sessions.describe(await sessions.branch(sessions.get(id), wanted or Branch()))

    @app.get("/v1/sessions/{id}/snapshot", response_class=FileResponse)
    async def snapshot(id: str) -> Response:
        taken = await sessions.snapshot(sessions.get(id))
        folder = tempfile.TemporaryDirectory(prefix="lolrt-")
        path = Path(folder.name) / f"{id}.snapshot.safetensors"
        await asyncio.to_thread(taken.write, path)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, background=BackgroundTask(folder.cleanup))
