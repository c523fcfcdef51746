// Plays a stream as motion JPEG, where a browser has nothing better. It is read here and not by an image element, which could send no token
// and would not say which picture it shows.

import * as api from "./api.js";
import { PacedPlayer } from "./paced.js";

const MOST_HEADER = 512; // bytes; the server's are shorter

export class PicturePlayer extends PacedPlayer {
  /** A canvas takes the place of the video. */
  constructor(video, id) {
    super(document.createElement("canvas"), id);
    this.element.setAttribute("role", "img");
    video.replaceWith(this.element);
    this.request = null;
  }

  get connected() {
    return this.request !== null;
  }

  async connect() {
    this.disconnect();
    const request = (this.request = new AbortController());
    try {
      for await (const { seconds, data } of parts((await api.pictures(this.id, request.signal)).body)) {
        await this.draw(data);
        if (request !== this.request) return;
        this.counted(performance.now(), this.shown + 1);
        this.seen(seconds);
      }
    } catch {
      // A break; whether there is something to come back to, the messages of the stream tell.
    }
    if (request !== this.request) return;
    this.request = null;
    this.again();
  }

  disconnect() {
    this.request?.abort();
    this.request = null;
  }

  async draw(data) {
    const picture = await createImageBitmap(new Blob([data], { type: "image/jpeg" }));
    const { width, height } = picture;
    if (this.element.width !== width || this.element.height !== height) Object.assign(this.element, { width, height });
    this.element.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
  }
}

/** The parts of multipart/x-mixed-replace: data, and the time in the stream that its header has. */
async function* parts(body) {
  const reader = body.getReader();
  let bytes = new Uint8Array();
  /** Reads on until enough() is not negative, and returns it; a negative number if the body ends before. */
  const until = async (enough) => {
    for (;;) {
      const found = enough();
      if (found >= 0) return found;
      const { done, value } = await reader.read();
      if (done) return -1;
      const both = new Uint8Array(bytes.length + value.length);
      both.set(bytes);
      both.set(value, bytes.length);
      bytes = both;
    }
  };
  const text = () => new TextDecoder("latin1").decode(bytes.subarray(0, MOST_HEADER));
  for (;;) {
    const end = await until(() => text().indexOf("\r\n\r\n"));
    if (end < 0) return;
    const [header, from] = [text().slice(0, end), end + 4];
    const to = from + Number(header.match(/^Content-Length: (\d+)/m)[1]);
    if ((await until(() => bytes.length - to)) < 0) return;
    yield { seconds: Number(header.match(/^Lolrt-Seconds: ([\d.]+)/m)[1]), data: bytes.slice(from, to) };
    bytes = bytes.slice(to);
  }
}
