// Plays a stream by WebRTC. The server keeps the time; chunks are told apart by the clock of RTP, which runs with the stream's.

import * as api from "./api.js";

const CLOCK = 90_000; // Hz
const WRAP = 2 ** 32;
const STALL_SECONDS = 0.5; // without a picture
const AGAIN_SECONDS = 1;
const KEPT_CHUNKS = 16;

export class RtcPlayer {
  wantsMedia = false;
  recording = null; // there are no fragments here to keep

  constructor(video, id) {
    Object.assign(this, { video, id, shown: 0, stalls: 0, chunks: [], connection: null, origin: null, held: false, closed: false });
    this.onshown = () => {};
    this.watchPictures();
  }

  /** Connects, also after a break: what there was may be of a server that is gone, which shows only later. */
  start() {
    this.connect();
  }

  async connect() {
    this.connection?.close();
    const connection = (this.connection = new RTCPeerConnection());
    this.origin = null;
    connection.addTransceiver("video", { direction: "recvonly" });
    connection.addEventListener("track", ({ track }) => {
      this.video.srcObject = new MediaStream([track]);
      this.video.play().catch(() => {}); // a browser that wants to be asked first
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

  again() {
    clearTimeout(this.later);
    if (!this.closed && !this.held) this.later = setTimeout(() => this.connect(), 1000 * AGAIN_SECONDS);
  }

  append(_, chunk) {
    this.chunks = [...this.chunks.slice(1 - KEPT_CHUNKS), chunk];
  }

  hold() {
    this.held = true;
  }

  goOn() {
    this.held = false;
    if (["failed", "closed"].includes(this.connection?.connectionState)) this.connect();
  }

  /** Seconds of video that are made and not shown. */
  ahead() {
    const last = this.chunks.at(-1);
    return last && this.at !== undefined ? Math.max(0, last.time + last.seconds - this.at) : 0;
  }

  watchPictures() {
    if (!this.video.requestVideoFrameCallback) return;
    let last = null;
    const picture = (now, data) => {
      this.shown = data.presentedFrames;
      if (last !== null && now - last > 1000 * STALL_SECONDS && !this.held) this.stalls += 1;
      last = now;
      this.picture(data.rtpTimestamp);
      if (!this.closed) this.video.requestVideoFrameCallback(picture);
    };
    this.video.requestVideoFrameCallback(picture);
  }

  picture(timestamp) {
    // The first picture is that of the chunk that the server has named.
    const first = this.chunks.find((each) => each.sequence === this.first);
    if (timestamp === undefined || (this.origin === null && !first)) return;
    this.origin ??= { timestamp, time: first.time };
    this.at = this.origin.time + ((timestamp - this.origin.timestamp + WRAP) % WRAP) / CLOCK;
    const chunk = this.chunks.findLast((each) => each.time <= this.at + 1e-3);
    if (chunk) this.onshown(chunk, this.at - chunk.time);
  }

  close() {
    this.closed = true;
    clearTimeout(this.later);
    this.connection?.close();
    this.video.srcObject = null;
  }
}
