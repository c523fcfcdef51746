// The server's words (docs/serve.md), and nothing else: requests, and the socket that video comes by.

const BACKOFF_SECONDS = [0.3, 1, 2, 4, 8];

/** An answer that says no; message is meant for people. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let token = null;

/** Uses the token that the address has after #token=, and takes it out of there, or the one that was used before in this tab. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("token")) {
    useToken(given.get("token"));
    given.delete("token");
    history.replaceState(null, "", "#" + given);
  }
  token = sessionStorage.getItem("token");
}

export const hasToken = () => token !== null;

export function useToken(text) {
  sessionStorage.setItem("token", text);
  token = text;
}

async function request(method, path, body, type = "application/json", signal) {
  const headers = { ...(body === undefined ? {} : { "Content-Type": type }), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: typeof body === "string" || body === undefined ? body : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(response.status, told.error?.message ?? response.statusText, Number(response.headers.get("Retry-After")) || null);
  }
  return response;
}

const json = async (...asked) => (await request(...asked)).json();
const path = (id, rest = "") => `/v1/sessions/${encodeURIComponent(id)}${rest}`;

export const models = async () => (await json("GET", "/v1/models")).data;
export const sessions = async () => (await json("GET", "/v1/sessions")).data;
export const session = (id) => json("GET", path(id));
export const create = (wanted) => json("POST", "/v1/sessions", wanted);
export const remove = (id) => request("DELETE", path(id));
export const branch = (id) => json("POST", path(id, "/branch"), {});
export const pause = (id) => json("POST", path(id, "/pause"), {});
export const goOn = (id) => json("POST", path(id, "/continue"), {});
export const playlist = (id) => path(id, "/live.m3u8");
/** An address that gives a snapshot. A browser can be told no token for one, so there it is fetched first. */
export const snapshot = async (id) => (token ? URL.createObjectURL(await (await request("GET", path(id, "/snapshot"))).blob()) : path(id, "/snapshot"));
/** Offers a connection of WebRTC; gives the answer, and the sequence of the chunk that it begins with. */
export async function whep(id, offer) {
  const response = await request("POST", path(id, "/whep"), offer, "application/sdp");
  return { answer: await response.text(), sequence: Number(response.headers.get("Lolrt-Sequence")) };
}
/** The stream as motion JPEG; the answer's body goes on. */
export const pictures = (id, signal) => request("GET", path(id, "/mjpeg"), undefined, undefined, signal);
export const interact = (id, eventId, prompt, chunks) =>
  json("POST", path(id, "/interactions"), { event_id: eventId, event: { prompt }, transition_chunks: chunks });

/**
 * Watches a session: told(message, bytes) for each of its messages, and for the binary frame of those that have one; without media, none has.
 * After a break it goes on with the chunk that follows the last one. state(text, seconds) is told "open", "broken" (until the next try in so
 * many seconds) and "over" (there is nothing to come back to).
 */
export class Watch {
  constructor(id, media, told, state) {
    Object.assign(this, { id, media, told, state, tries: 0, next: null, closed: false });
    this.connect();
  }

  connect() {
    const address = new URL(path(this.id, "/watch"), location.href);
    address.protocol = address.protocol.replace("http", "ws");
    if (!this.media) address.searchParams.set("video", "false");
    if (this.next !== null) address.searchParams.set("from", this.next);
    this.socket = new WebSocket(address, token ? ["lolrt", `token.${token}`] : ["lolrt"]);
    this.socket.binaryType = "arraybuffer";
    let header = null;
    this.socket.onmessage = ({ data }) => {
      if (typeof data === "string") {
        const message = JSON.parse(data);
        if (message.byte_length) header = message;
        else this.take(message);
      } else {
        this.take(header, data);
      }
    };
    this.socket.onclose = () => this.closed || this.again();
  }

  take(message, bytes) {
    if (message.type === "video.start") {
      this.tries = 0;
      this.state("open");
    }
    if (message.type === "video.chunk_metadata") this.next = message.sequence + 1;
    if (message.type === "session.done") {
      if (message.reason === "shutdown") return; // a server that comes back may have it still
      this.close();
    }
    this.told(message, bytes);
  }

  async again() {
    const seconds = BACKOFF_SECONDS[Math.min(this.tries++, BACKOFF_SECONDS.length - 1)];
    this.state("broken", seconds);
    await new Promise((done) => setTimeout(done, 1000 * seconds));
    if (this.closed) return;
    const gone = await session(this.id).then(() => false, (refused) => refused.status === 404);
    if (this.closed) return;
    if (!gone) return this.connect();
    this.close();
    this.state("over");
  }

  close() {
    this.closed = true;
    this.socket.close();
  }
}
