"""Descriptions of sessions: as JSON, and as gauges for `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily

from lolrt.serve.ended import Ended
from lolrt.session.config import to_plain

if TYPE_CHECKING:
    from lolrt.serve.live import Live
    from lolrt.serve.sessions import Session, Sessions


def describe(sessions: Sessions, session: Session | Ended) -> dict[str, Any]:
    """A session as a JSON object."""
    if isinstance(session, Ended):
        return session.describe()
    live, pipe, config = session.live, sessions.pipe, session.config
    about = {
        "id": live.id,
        "state": session.hub.state.name,
        "prompt": live.stream.prompt,
        "seed": config.seed,
        "width": pipe.width,
        "height": pipe.height,
        "fps": pipe.fps,
        "temporal_factor": pipe.vae.config.temporal_factor,
        "rope": to_plain(config.rope),
        "window": {**to_plain(config.window), "pages": config.window.pages},
        "lora": list(live.stream.latent_stream.dit.adapters),
        "probe": config.probe,
        "next_sequence": session.hub.next_sequence,
        "next_interaction": live.interactions,
        "lease_seconds": live.lease_seconds,
        "expires_in": round(max(0.0, session.expires_in), 1),
        "created": round(live.created, 3),
        "viewers": session.hub.viewers,
        "bytes": held_bytes(sessions, live),
        "statistics": live.statistics.plain(),
    }
    if live.kept is not None:
        about["kept"] = {"sequence": live.kept.sequence, "failures": live.kept.failures, "error": live.kept.error}
    return about


def radians(sessions: Sessions, session: Session | Ended) -> list[list[float]] | None:
    """The temporal frequencies of the heads, [heads][pairs], in radians per latent frame; None where sinks do not fall behind."""
    config, dit = session.config, sessions.pipe.dit.config
    if config.rope.positions != "absolute" or not config.window.sink_frames:
        return None
    return config.rope.radians(dit.num_layers, dit.num_heads, dit.temporal_pairs).reshape(-1, dit.temporal_pairs).tolist()


def held_bytes(sessions: Sessions, live: Live) -> int:
    """The memory of a session, in bytes: its reserved pages, its prompt, and the fragments that viewers may ask for."""
    engine = sessions.factory.engine.engine
    return live.stream.latent_stream.window.pool_pages * engine.page_bytes + engine.session_bytes + live.hub.held_bytes


def gauges(sessions: Sessions) -> list[GaugeMetricFamily]:
    """The gauges of `/metrics`: the state of the sessions at this moment."""

    def gauge(name: str, text: str, value: float | None = None, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"lolrt_{name}", text, value, labels or None)

    states = gauge("sessions", "Sessions that are open, by what they do", None, "state")
    held = gauge("session_bytes", "What each session holds: pages, prompt and fragments", None, "session")
    counts = {"live": 0, "paused": 0}
    viewers = 0
    for session in sessions:
        counts[session.hub.state.name] = counts.get(session.hub.state.name, 0) + 1
        viewers += session.hub.viewers
        held.add_metric([session.live.id], held_bytes(sessions, session.live))
    for state, count in counts.items():
        states.add_metric([state], count)
    pool = sessions.factory.engine.engine.pool
    return [
        states,
        held,
        gauge("viewers", "Connections that watch a session", viewers),
        gauge("pages_free", "Pages of the KV cache that no session has reserved", pool.unreserved_pages),
        gauge("pages", "Pages of the KV cache", pool.pages.shape[1]),
    ]
