// What is known of one stream, without a word of how it is shown.

import * as api from "./api.js";
import { rowsOf } from "./charts.js";
import { PhaseKernel } from "./phase.js";

const REASONS = {
  closed: "It was closed.", expired: "Nobody had watched it for a while.", lifetime: "It had lived as long as the server lets streams live.", complete: "It is complete.",
};
const KEPT_CHUNKS = 200; // of the past; the score shows fewer
const RATE_SECONDS = 2; // over which pictures are counted

/** The video frame at which a latent frame begins: the first makes one, each other as many as the VAE's factor. */
export function videoFrame(latent, info) {
  return latent === 0 ? 0 : 1 + (latent - 1) * info.temporal_factor;
}

export class Stream {
  /** origin: the stream that it was branched from, or null; player: what shows it; changed: called when anything has. */
  constructor(id, origin, player, changed) {
    Object.assign(this, { id, origin, player, changed });
    this.state = "starting"; // live, paused, broken, over, failed
    this.reason = "";
    this.chunks = [];
    this.prompts = [];
    this.kernel = null;
    this.asked = new Map(); // event id -> when it was sent
    this.latency = null; // seconds from the last prompt to its picture
    this.lost = 0; // chunks that the server had no more when they were asked for
    this.met = { count: 0, of: 0 };
    this.now = 0;
    this.counted = [];
    player.onshown = (chunk, into) => this.shown(chunk, into);
    this.watch = new api.Watch(id, player.wantsMedia, (message, bytes) => this.told(message, bytes), (state, seconds) => this.connection(state, seconds));
  }

  /** The past of another stream, up to the moment from which this one goes on, is its own too. */
  takePast(time) {
    const before = (each) => each.time < time - 1e-3;
    this.chunks = this.origin.chunks.filter(before);
    this.prompts = this.origin.prompts.filter(before);
    this.origin = null;
  }

  connection(state, seconds) {
    this.connected = state === "open";
    if (state === "broken") this.to("broken", `Trying again in ${seconds} s`);
    if (state === "over") this.to("over", "The server does not have this stream any more.");
  }

  to(state, reason = "") {
    this.state = state;
    this.reason = reason;
    this.changed(this);
  }

  told(message, bytes) {
    switch (message.type) {
      case "video.start":
        this.begin(message, bytes);
        break;
      case "video.chunk_metadata":
        this.chunk(message, bytes);
        break;
      case "video.gap":
        this.lost += message.to - message.from;
        break;
      case "session.paused":
        this.player.hold();
        this.to("paused");
        break;
      case "session.continued":
        this.player.goOn();
        this.to("live");
        break;
      case "session.done":
        this.player.hold();
        this.to(message.reason === "failed" ? "failed" : "over", message.message ?? REASONS[message.reason] ?? "");
        break;
      case "error":
        this.to("failed", message.message);
        break;
    }
  }

  /** The beginning, or the first message after a break. */
  begin(message, bytes) {
    this.info = message;
    this.kernel = message.radians ? new PhaseKernel(message.radians) : null;
    if (!this.prompts.length) this.prompts = [{ time: 0, prompt: message.prompt }];
    if (this.state === "broken") this.to("live");
    this.player.start(message.mime, bytes);
  }

  chunk(message, bytes) {
    const { fps, window } = this.info;
    const chunk = {
      sequence: message.sequence, time: message.first_frame / fps, seconds: message.seconds,
      made: message.made_seconds, late: message.slack_seconds < 0,
      full: message.first_latent_frame >= window.pages, mass: message.sink_mass, events: message.started_event_ids, prompt: message.prompt,
    };
    if (chunk.mass) {
      chunk.rows = rowsOf(chunk.mass);
      chunk.mean = chunk.rows.reduce((sum, each) => sum + each, 0) / chunk.rows.length;
    }
    if (this.origin) this.takePast(chunk.time);
    if (message.slack_seconds !== null) {
      this.met.of += 1;
      this.met.count += !chunk.late;
    }
    this.chunks = [...this.chunks.slice(1 - KEPT_CHUNKS), chunk];
    if (message.prompt && message.prompt !== this.prompts.at(-1)?.prompt) this.prompts.push({ time: chunk.time, prompt: message.prompt });
    this.player.append(bytes, chunk);
    if (this.state !== "paused") this.state = "live";
    this.changed(this);
  }

  /** A picture of a chunk is on the screen, so many seconds into it. */
  shown(chunk, into) {
    const now = performance.now();
    this.now = chunk.time + into;
    this.current = chunk;
    this.counted.push([now, this.player.shown]);
    while (now - this.counted[0][0] > 1000 * RATE_SECONDS) this.counted.shift();
    for (const event of chunk.events.filter((each) => this.asked.has(each))) {
      this.latency = (now - this.asked.get(event)) / 1000;
      this.asked.delete(event);
      this.onarrived?.(this);
    }
    this.onpicture?.(this);
  }

  /** Pictures a second on the screen. */
  get rate() {
    const [first, last] = [this.counted[0], this.counted.at(-1)];
    return first && last[0] > first[0] ? (1000 * (last[1] - first[1])) / (last[0] - first[0]) : 0;
  }

  /** Seconds between the newest picture that has come and the one on the screen. */
  get behind() {
    return this.player.ahead();
  }

  async steer(prompt, chunks) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    this.asked.set(id, performance.now());
    try {
      await api.interact(this.id, id, prompt, chunks);
    } catch (error) {
      this.asked.delete(id);
      throw error;
    }
  }

  close() {
    this.watch.close();
    this.player.close();
  }
}
