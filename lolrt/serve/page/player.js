// Plays fragments of mp4 as they come, by Media Source Extensions, and stays at the live edge.

// What is to be left of the buffer when the next chunk comes: playing begins so much after the first chunk has come, and after a stall. With
// more of it the picture runs a little faster, with less a little slower.
const SPARE_SECONDS = 0.2;
const RATE_PER_SECOND = 0.15; // change of rate for a second too much
const FASTEST = 1.1;
const SLOWEST = 0.95;
// Farther behind than this it jumps.
const JUMP_SECONDS = 3;
// What has been played is given back.
const KEPT_SECONDS = 20;
// Chunks over which the least spare time is taken.
const WATCHED_CHUNKS = 6;

export const Source = window.ManagedMediaSource ?? window.MediaSource;

export class Player {
  wantsMedia = true;

  constructor(video) {
    this.element = video;
    this.onshown = () => {}; // a picture of a chunk is on the screen, so many seconds into it
    this.shown = 0; // pictures that the browser has put on the screen
    this.stalls = 0;
    this.chunks = []; // {from, to, chunk}: seconds of the media timeline
    this.recording = null;
    this.buffer = null;
    this.waiting = []; // bytes for the source buffer, which takes one piece at a time
    this.spare = [];
    this.running = false; // whether it has begun
    this.starved = false; // whether it has stopped because nothing was left
    this.waitingToPlay = null;
    video.addEventListener("waiting", () => this.stalled());
    document.addEventListener("visibilitychange", () => document.hidden || this.catchUp(JUMP_SECONDS));
    this.watchPictures();
  }

  /** Begins, or goes on with the same timeline after a break. */
  start(codec, init) {
    if (this.codec === codec) return;
    this.codec = codec;
    this.init = init;
    const source = (this.source = new Source());
    this.element.disableRemotePlayback = true;
    this.url = URL.createObjectURL(source);
    this.element.src = this.url;
    source.addEventListener("sourceopen", () => {
      if (this.url === null) return; // it was closed meanwhile
      this.buffer = source.addSourceBuffer(codec);
      this.buffer.addEventListener("updateend", () => this.appended());
      this.feed();
    }, { once: true });
    this.push({ data: init });
  }

  /** A fragment: data is an ArrayBuffer, chunk what onshown is told. */
  append(data, chunk) {
    this.recording?.push(data);
    this.push({ data, chunk });
  }

  /** No more comes for now: what is there is played to its end. */
  hold() {
    this.held = true;
    this.feed();
  }

  goOn() {
    this.held = false;
    this.starved = true;
    this.spare = [];
  }

  push(piece) {
    this.waiting.push(piece);
    this.feed();
  }

  feed() {
    if (!this.buffer || this.buffer.updating) return;
    if (!this.waiting.length) {
      // Else the browser would keep the last pictures back, for those that come next. Another append opens it again.
      if (this.held && this.source.readyState === "open") this.source.endOfStream();
      return;
    }
    this.feeding = this.waiting.shift();
    this.before = this.end();
    if (this.feeding.chunk && this.running) this.spare = [...this.spare.slice(1 - WATCHED_CHUNKS), this.ahead()];
    try {
      this.buffer.appendBuffer(this.feeding.data);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.waiting.unshift(this.feeding);
      this.trim(2);
    }
  }

  appended() {
    const chunk = this.feeding?.chunk;
    this.feeding = null;
    const ranges = this.element.buffered;
    if (chunk && ranges.length) {
      const from = ranges.length > 1 && ranges.start(ranges.length - 1) > this.before ? ranges.start(ranges.length - 1) : this.before;
      this.chunks.push({ from: from ?? ranges.start(0), to: this.end(), chunk });
      this.chunks = this.chunks.filter((each) => each.to > this.element.currentTime - 1);
      this.advance();
      this.keepUp();
    }
    if (!this.waiting.length && this.element.currentTime - (ranges.length ? ranges.start(0) : 0) > 2 * KEPT_SECONDS) this.trim(KEPT_SECONDS);
    this.feed();
  }

  /** Plays on, with what has just come. */
  advance() {
    const ranges = this.element.buffered;
    const newest = ranges.start(ranges.length - 1);
    const inside = [...Array(ranges.length).keys()].some((i) => ranges.start(i) <= this.element.currentTime && this.element.currentTime < ranges.end(i));
    if (!this.running || (!inside && this.element.currentTime < newest)) this.element.currentTime = newest; // the beginning, or past a gap
    if (this.running && !this.starved) return this.run();
    if (this.waitingToPlay) return;
    this.waitingToPlay = setTimeout(() => {
      this.waitingToPlay = null;
      this.running = true;
      this.starved = false;
      this.run();
    }, 1000 * SPARE_SECONDS);
  }

  run() {
    this.element.play().catch(() => {}); // a browser that wants to be asked first
  }

  keepUp() {
    if (this.held || !this.spare.length) return;
    const tooMuch = Math.min(...this.spare) - SPARE_SECONDS;
    this.element.playbackRate = Math.min(FASTEST, Math.max(SLOWEST, 1 + RATE_PER_SECOND * tooMuch));
    if (tooMuch > JUMP_SECONDS) this.catchUp(1);
  }

  /** Jumps so that no more than so many seconds are ahead. */
  catchUp(seconds) {
    if (this.running && this.ahead() > seconds) {
      this.element.currentTime = this.end() - Math.min(1, seconds);
      this.spare = [];
    }
  }

  stalled() {
    if (!this.running || this.held || this.starved || this.element.seeking) return;
    this.stalls += 1;
    this.spare = [];
    this.starved = true; // one longer wait in place of many short ones
    this.element.pause();
  }

  /** Seconds of video that are there and not played. */
  ahead() {
    return Math.max(0, (this.end() ?? 0) - this.element.currentTime);
  }

  end() {
    const ranges = this.element.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : undefined;
  }

  trim(seconds) {
    const end = this.element.currentTime - seconds;
    if (this.buffer && !this.buffer.updating && end > 0) this.buffer.remove(0, end);
  }

  watchPictures() {
    if (!this.element.requestVideoFrameCallback) return;
    const picture = (_, data) => {
      this.shown = data.presentedFrames;
      const at = this.chunks.findLast((each) => each.from <= data.mediaTime + 1e-3);
      if (at) this.onshown(at.chunk, data.mediaTime - at.from);
      if (this.url !== null) this.element.requestVideoFrameCallback(picture);
    };
    this.element.requestVideoFrameCallback(picture);
  }

  record() {
    this.recording = [this.init];
  }

  /** The recording, an mp4 that begins where the record button was pressed. */
  recorded() {
    const parts = this.recording ?? [];
    this.recording = null;
    return parts.length > 1 ? new Blob(parts, { type: "video/mp4" }) : null;
  }

  close() {
    clearTimeout(this.waitingToPlay);
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.buffer = null;
    this.element.removeAttribute("src");
    this.element.load();
  }
}
