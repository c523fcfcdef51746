// By what video comes: fragments for Media Source Extensions, or WebRTC.

import { Player } from "./player.js";
import { RtcPlayer } from "./rtc.js";

const KEY = "transport";
const hasSource = Boolean(window.ManagedMediaSource ?? window.MediaSource);

let chosen = "buffered";

/** Those that there are for a model of the server's; the first is used unless another was chosen. */
export function transports(model) {
  const found = [];
  if (hasSource) found.push("buffered");
  if (model.webrtc && window.RTCPeerConnection) found.push("webrtc");
  const before = localStorage.getItem(KEY);
  chosen = found.includes(before) ? before : (found[0] ?? "buffered");
  return found;
}

export const transport = () => chosen;

/** Streams that are open are opened anew. */
export function choose(name) {
  localStorage.setItem(KEY, name);
  location.reload();
}

export const newPlayer = (video, id) => (chosen === "webrtc" ? new RtcPlayer(video, id) : new Player(video));
