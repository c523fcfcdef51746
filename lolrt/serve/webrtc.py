"""WebRTC: the video of a session over RTP. WHEP (draft-ietf-wish-whep) makes the connection: the viewer posts an offer and gets an answer.

The pictures are those of the fragments, as they were encoded: nothing is encoded again for a viewer. Each viewer has its own pace and no
queue: its track asks for the next picture when it has sent the one before.
"""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator
from contextvars import ContextVar
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import av
from av.bitstream import BitStreamFilterContext
from fastapi import FastAPI, Request
from fastapi.responses import Response

from lolrt.serve.errors import NoRoomError, NotFoundError, RequestError
from lolrt.serve.hub import Fragment
from lolrt.serve.live import START_BUFFER_SECONDS
from lolrt.serve.sessions import Session, Sessions

if TYPE_CHECKING:
    from aiortc import MediaStreamTrack, RTCPeerConnection

try:
    import aioice.ice
    import aiortc
except ImportError:  # the extra lolrt[webrtc]
    aiortc = None  # type: ignore[assignment]

MEDIA_TYPE = "application/sdp"
MOST_PEERS = 64
MOST_OFFER = 64 << 10
CONNECT_SECONDS = 15.0
# A viewer jumps to the newest chunk when its delay exceeds the time that sessions are made ahead by more than this.
JUMP_SECONDS = 2.0
CLOCK = 90_000  # of RTP, Hz: RFC 6184

_reached: ContextVar[str | None] = ContextVar("reached", default=None)
_addresses_of_host = None if aiortc is None else aioice.ice.get_host_addresses


def _addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """The addresses that media are sent from: only the one at which the offer came in. Other connections of the process, which are not a
    server's, have all addresses of the host."""
    reached = _reached.get()
    return _addresses_of_host(use_ipv4, use_ipv6) if reached is None else [reached]


class NoWebRTCError(RequestError):
    """The packages for WebRTC are not installed."""

    status = 501


@lru_cache(maxsize=32)
def pictures(init: bytes, data: bytes) -> tuple[tuple[bytes, float], ...]:
    """The pictures of a fragment as H.264 in Annex B format, key frames with their parameter sets; each with its time in the stream, in
    seconds. A fragment is converted once for all viewers."""
    with av.open(io.BytesIO(init + data)) as container:
        stream = container.streams.video[0]
        annex_b = BitStreamFilterContext("h264_mp4toannexb", stream)
        packets = [packet for each in container.demux(stream) for packet in annex_b.filter(each if each.size else None)]
    return tuple((bytes(packet), float((packet.pts or 0) * packet.time_base)) for packet in packets)


class Peers:
    """The open WebRTC connections."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._open: dict[str, tuple[Session, RTCPeerConnection]] = {}
        self._tasks = set[asyncio.Task[None]]()
        if self.available:
            aioice.ice.get_host_addresses = _addresses

    @property
    def available(self) -> bool:
        """Whether the packages for WebRTC are installed."""
        return aiortc is not None

    async def answer(self, session: Session, offer: str, address: str) -> tuple[str, str, int]:
        """Makes a connection. Returns its id, its answer as SDP, and the sequence number of its first chunk. address: the one at which the
        offer came in. Raises `RequestError`."""
        if not self.available:
            raise NoWebRTCError("there is no WebRTC: install it with pip install 'lolrt[webrtc]'", "no_webrtc")
        if len(self._open) >= MOST_PEERS:
            raise NoRoomError(f"{MOST_PEERS} viewers watch by WebRTC, and there is room for no more")
        id, first = uuid.uuid4().hex, session.hub.next_sequence
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self._open[id] = session, peer
        connected = asyncio.Event()
        track = self._track(session, first)

        @peer.on("connectionstatechange")
        def changed() -> None:
            if peer.connectionState == "connected":
                connected.set()
            if peer.connectionState in ("failed", "closed"):
                track.stop()

        session.hub.viewers += 1
        task = asyncio.create_task(self._watch(id, connected, track))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            _reached.set(address)
            return id, await _answer(peer, track, offer), first
        except BaseException:
            track.stop()
            connected.set()
            raise

    async def _watch(self, id: str, connected: asyncio.Event, track: MediaStreamTrack) -> None:
        """Waits until the viewer disconnects or the session ends, then closes the connection."""
        session, peer = self._open[id]
        ended = asyncio.Event()
        track.add_listener("ended", ended.set)
        try:
            await asyncio.wait_for(connected.wait(), CONNECT_SECONDS)
            if track.readyState != "ended":
                await ended.wait()
        except asyncio.TimeoutError:
            pass  # the viewer did not connect in time
        finally:
            session.hub.viewers -= 1
            del self._open[id]
            await peer.close()

    async def close(self, session: Session, id: str) -> None:
        """Closes a connection. Raises `NotFoundError`."""
        found = self._open.get(id)
        if found is None or found[0] is not session:
            raise NotFoundError("there is no such connection: it has ended")
        await found[1].close()

    async def close_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _track(self, session: Session, first: int) -> MediaStreamTrack:
        """A track with the pictures of a session, for one viewer, from the chunk `first` on."""
        sessions, packets = self._sessions, self._packets(session, first)

        class Track(aiortc.MediaStreamTrack):
            kind = "video"

            async def recv(self) -> av.Packet:
                try:
                    packet = await anext(packets)
                except StopAsyncIteration:
                    self.stop()
                    raise aiortc.mediastreams.MediaStreamError from None
                sessions.metrics.sent.inc(packet.size)
                return packet

        return Track()

    async def _packets(self, session: Session, first: int) -> AsyncIterator[av.Packet]:
        """The packets of a session, each at its time."""
        factory, pipe = self._sessions.factory, self._sessions.pipe
        most_behind = self._sessions.settings.ahead_seconds + JUMP_SECONDS
        due = time.monotonic() + START_BUFFER_SECONDS
        async for event in session.hub.follow(first):
            if not isinstance(event, Fragment):
                continue
            if (session.hub.newest - event.sequence) * event.about["seconds"] > most_behind:
                continue
            due = max(due, time.monotonic())
            for data, at in pictures(factory.init, event.data):
                await asyncio.sleep(due - time.monotonic())
                packet = av.Packet(data)
                packet.pts, packet.time_base = round(at * CLOCK), Fraction(1, CLOCK)
                yield packet
                due += 1 / pipe.fps


async def _answer(peer: RTCPeerConnection, track: MediaStreamTrack, offer: str) -> str:
    """The SDP answer to an offer. Raises `RequestError`."""
    # The viewer connects to us; we do not use the addresses in its offer. So nothing is sent to an address that has not sent to us first.
    lines = [line for line in offer.splitlines() if "candidate" not in line]
    codecs = aiortc.RTCRtpSender.getCapabilities("video").codecs
    sending = peer.addTransceiver(track, "sendonly")
    sending.setCodecPreferences([codec for codec in codecs if codec.mimeType == "video/H264"])
    try:
        await peer.setRemoteDescription(aiortc.RTCSessionDescription("\r\n".join([*lines, ""]), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        if sending.currentDirection != "sendonly":
            raise ValueError
    except Exception as error:
        raise RequestError(f"expected an offer, as SDP, to receive H.264 video ({type(error).__name__})", "bad_offer") from error
    return peer.localDescription.sdp


def add_routes(app: FastAPI, sessions: Sessions, peers: Peers) -> None:
    body: dict[str, Any] = {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}}

    @app.post("/v1/sessions/{id}/whep", status_code=201, response_class=Response, openapi_extra=body)
    async def whep(id: str, request: Request) -> Response:
        session = sessions.get(id)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise RequestError(f"expected an offer of the type {MEDIA_TYPE}", "bad_offer")
        offer = await request.body()
        if len(offer) > MOST_OFFER:
            raise RequestError(f"the offer has {len(offer)} bytes; expected {MOST_OFFER} at most", "bad_offer")
        made, answer, first = await peers.answer(session, offer.decode(errors="replace"), request.scope["server"][0])
        headers = {"Location": f"/v1/sessions/{id}/whep/{made}", "Lolrt-Sequence": str(first)}
        return Response(answer, 201, headers, MEDIA_TYPE)

    @app.delete("/v1/sessions/{id}/whep/{connection}", status_code=204)
    async def end(id: str, connection: str) -> None:
        await peers.close(sessions.get(id), connection)
