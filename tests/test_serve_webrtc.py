"""WebRTC, with aiortc as the viewer: its pictures are those of the fragments, and impossible requests are refused."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiortc
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError
from serving import PROMPT, Server, Viewer, pictures
from websockets.sync.client import connect

from lolrt.serve import webrtc
from lolrt.serve.protocol import Stream
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings

pytestmark = pytest.mark.whole

SDP = {"Content-Type": "application/sdp"}


@pytest.fixture(scope="module")
def server(quick_model) -> Iterator[Server]:
    with Server("--model", quick_model) as server:
        yield server


@pytest.fixture
def id(server) -> Iterator[str]:
    id = server.open()
    yield id
    server.ask("DELETE", f"/v1/sessions/{id}")


def offer_of(*kinds: str, codec: str = "") -> str:
    """An offer to receive video; codec: the only one that it accepts."""

    async def make() -> str:
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        for kind in kinds:
            transceiver = peer.addTransceiver(kind, "recvonly")
            codecs = aiortc.RTCRtpSender.getCapabilities(kind).codecs
            transceiver.setCodecPreferences([each for each in codecs if codec in each.mimeType])
        await peer.setLocalDescription(await peer.createOffer())
        await peer.close()
        return peer.localDescription.sdp

    return asyncio.run(make())


class Watching:
    """A viewer that receives video."""

    track: aiortc.MediaStreamTrack
    first: int
    """The sequence of its first chunk."""
    path: str
    """The location of the connection, to end it."""
    answer: str

    async def frames(self, count: int) -> np.ndarray:
        """The pictures, [count, height, width, 3]."""
        found = [await asyncio.wait_for(self.track.recv(), 30) for _ in range(count)]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in found])  # type: ignore[union-attr]


@asynccontextmanager
async def watching(server: Server, id: str) -> AsyncIterator[Watching]:
    peer, viewer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[])), Watching()
    peer.addTransceiver("video", "recvonly")
    peer.on("track", lambda track: setattr(viewer, "track", track))
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp.encode()
    status, headers, answer = await asyncio.to_thread(server.ask, "POST", f"/v1/sessions/{id}/whep", sdp, **SDP)
    assert status == 201 and headers["content-type"] == "application/sdp", answer
    viewer.first, viewer.path, viewer.answer = int(headers["lolrt-sequence"]), headers["location"], answer.decode()
    await peer.setRemoteDescription(aiortc.RTCSessionDescription(viewer.answer, "answer"))
    try:
        yield viewer
    finally:
        await peer.close()


async def viewers(server: Server, id: str, wanted: int) -> None:
    """Waits until there are this many pictures."""
    deadline = time.monotonic() + 20
    while (await asyncio.to_thread(server.json, "GET", f"/v1/sessions/{id}"))["viewers"] != wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def test_viewers_see_the_pictures_of_the_fragments(server, id):
    """Bit for bit, with two viewers at a time: both get what was encoded once. The server listens only at the address of the offer."""

    async def look() -> tuple[list[Watching], list[np.ndarray]]:
        async with watching(server, id) as one, watching(server, id) as other:
            seen = await asyncio.gather(one.frames(30), other.frames(30))
            await viewers(server, id, 2)
        await viewers(server, id, 0)  # it has left, and is not counted
        return [one, other], list(seen)

    watched, seen = asyncio.run(look())
    with Viewer(server, id, 0) as viewer:
        chunks = viewer.chunks(max(each.first for each in watched) + 3)
    for each, frames in zip(watched, seen, strict=True):
        encoded = pictures(viewer.init + b"".join(data for _, data in chunks[each.first :]))
        assert np.array_equal(frames, encoded[:30])
        hosts = {line.split()[4] for line in each.answer.splitlines() if line.startswith("a=candidate")}
        assert hosts == {"127.0.0.1"}
        assert "H264" in each.answer and "VP8" not in each.answer


def test_messages_come_without_video(server, id):
    with connect(f"{server.sockets}/v1/sessions/{id}/watch?from=0&video=false") as socket:
        start, *chunks = [json.loads(socket.recv(timeout=60)) for _ in range(3)]
    assert start["type"] == "video.start" and [chunk["sequence"] for chunk in chunks] == [0, 1]
    with Viewer(server, id, 0) as viewer:
        with_video = [message for message, _ in viewer.chunks(2)]
    assert [{**chunk, "byte_length": other["byte_length"]} for chunk, other in zip(chunks, with_video, strict=True)] == with_video


def test_an_end_is_told(server):
    """The viewer ends only its own connection; the session ends all."""

    async def look() -> None:
        id = server.open()
        async with watching(server, id) as one, watching(server, id) as other:
            await asyncio.gather(one.frames(3), other.frames(3))
            assert (await asyncio.to_thread(server.ask, "DELETE", one.path))[0] == 204
            await viewers(server, id, 1)
            assert (await asyncio.to_thread(server.ask, "DELETE", one.path))[0] == 404
            await other.frames(3)
            await asyncio.to_thread(server.ask, "DELETE", f"/v1/sessions/{id}")
            with pytest.raises(MediaStreamError):
                await other.frames(1000)

    asyncio.run(look())


def test_what_is_no_offer_is_refused(server, id):
    good = offer_of("video")
    wrong = [
        b"", b"v=0", b"\xff\x00" * 100, good.encode()[:200], b"x" * (webrtc.MOST_OFFER + 1),
        offer_of("audio").encode(), offer_of("video", codec="VP8").encode(), good.replace("recvonly", "inactive").encode(),
        re.sub("a=ice-pwd.*\r\n", "", good).encode(),
    ]  # fmt: skip
    for offer in wrong:
        status, _, content = server.ask("POST", f"/v1/sessions/{id}/whep", offer, **SDP)
        assert (status, json.loads(content)["error"]["code"]) == (400, "bad_offer"), offer[:300]
    assert server.ask("POST", f"/v1/sessions/{id}/whep", good.encode())[0] == 400  # as JSON
    assert server.ask("POST", "/v1/sessions/nothing/whep", good.encode(), **SDP)[0] == 404
    assert server.json("GET", f"/v1/sessions/{id}")["viewers"] == 0
    assert server.json("GET", "/v1/models")["data"][0]["webrtc"] is True


def test_who_offers_and_does_not_come_is_given_up(quick, monkeypatch):
    """The number of connections is limited; without aiortc the answer says what to install."""
    monkeypatch.setattr(webrtc, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(webrtc, "MOST_PEERS", 1)
    offer = offer_of("video")

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=1))
        await sessions.start()
        peers, session = webrtc.Peers(sessions), await sessions.open(Stream(prompt=PROMPT))
        await peers.answer(session, offer, "127.0.0.1")
        assert session.hub.viewers == 1
        with pytest.raises(webrtc.NoRoomError):
            await peers.answer(session, offer, "127.0.0.1")
        await asyncio.sleep(1.0)
        assert session.hub.viewers == 0
        await peers.answer(session, offer, "127.0.0.1")
        await peers.close_all()
        assert session.hub.viewers == 0
        monkeypatch.setattr(webrtc, "aiortc", None)
        with pytest.raises(webrtc.NoWebRTCError, match=r"pip install 'lolrt\[webrtc\]'"):
            await webrtc.Peers(sessions).answer(session, offer, "127.0.0.1")
        await sessions.close()

    asyncio.run(run())
