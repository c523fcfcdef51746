// Plays a stream by WebRTC. Chunks are told apart by the clock of RTP, which runs with the stream's.

import * as api from "./api.js";
import { PacedPlayer } from "./paced.js";

const CLOCK = 90_000; // Hz
const WRAP = 2 ** 32;

export class RtcPlayer extends PacedPlayer {
  constructor(video, id) {
    super(video, id);
    this.connection = null;
    this.origin = null;
    this.watchPictures();
  }

  get connected() {
    return !["failed", "closed"].includes(this.connection?.connectionState);
  }

  async connect() {
    this.connection?.close();
    const connection = (this.connection = new RTCPeerConnection());
    this.origin = null;
    connection.addTransceiver("video", { direction: "recvonly" });
    connection.addEventListener("track", ({ track }) => {
      this.element.srcObject = new MediaStream([track]);
      this.element.play().catch(() => {}); // a browser that wants to be asked first
    });
    connection.addEventListener("connectionstatechange", () => {
      if (connection.connectionState === "failed" && connection === this.connection) this.again();
    });
    try {
      await connection.setLocalDescription(await connection.createOffer());
      const { answer, sequence } = await api.whep(this.id, connection.localDescription.sdp);
      this.first = sequence;
      if (connection === this.connection) await connection.setRemoteDescription({ type: "answer", sdp: answer });
    } catch {
      this.again();
    }
  }

  disconnect() {
    this.connection?.close();
    this.element.srcObject = null;
  }

  watchPictures() {
    if (!this.element.requestVideoFrameCallback) return;
    const picture = (now, data) => {
      this.counted(now, data.presentedFrames);
      this.picture(data.rtpTimestamp);
      if (!this.closed) this.element.requestVideoFrameCallback(picture);
    };
    this.element.requestVideoFrameCallback(picture);
  }

  picture(timestamp) {
    // The first picture is that of the chunk that the server has named.
    const first = this.chunks.find((each) => each.sequence === this.first);
    if (timestamp === undefined || (this.origin === null && !first)) return;
    this.origin ??= { timestamp, time: first.time };
    this.seen(this.origin.time + ((timestamp - this.origin.timestamp + WRAP) % WRAP) / CLOCK);
  }
}
