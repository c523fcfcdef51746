// What players have in common for which the server keeps the time: they get pictures as they are due, and no fragments.

const AGAIN_SECONDS = 1;
const STALL_SECONDS = 0.5; // without a picture
const KEPT_CHUNKS = 16;

/** A player of this kind has connect(), disconnect(), and `connected`: whether pictures come, or may still. */
export class PacedPlayer {
  wantsMedia = false;
  recording = null; // there are no fragments here to keep

  /** element: what the pictures are seen in. */
  constructor(element, id) {
    Object.assign(this, { element, id, shown: 0, stalls: 0, chunks: [], last: null, held: false, closed: false });
    this.onshown = () => {};
  }

  /** Connects, also after a break: what there was may be of a server that is gone, which shows only later. */
  start() {
    this.connect();
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
    if (!this.connected) this.connect();
  }

  /** Seconds of video that are made and not shown. */
  ahead() {
    const last = this.chunks.at(-1);
    return last && this.at !== undefined ? Math.max(0, last.time + last.seconds - this.at) : 0;
  }

  /** A picture is on the screen, the first or one after others; now: in milliseconds. */
  counted(now, pictures) {
    this.shown = pictures;
    if (this.last !== null && now - this.last > 1000 * STALL_SECONDS && !this.held) this.stalls += 1;
    this.last = now;
  }

  /** It is that of this time of the stream, in seconds. */
  seen(time) {
    this.at = time;
    const chunk = this.chunks.findLast((each) => each.time <= time + 1e-3);
    if (chunk) this.onshown(chunk, time - chunk.time);
  }

  close() {
    this.closed = true;
    clearTimeout(this.later);
    this.disconnect();
  }
}
