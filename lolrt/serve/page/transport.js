// By what video comes: fragments for Media Source Extensions, WebRTC, or pictures.

import { PicturePlayer } from "./pictures.js";
import { Player, Source } from "./player.js";
import { RtcPlayer } from "./rtc.js";

const KEY = "transport";
const PLAYERS = { buffered: Player, webrtc: RtcPlayer, pictures: PicturePlayer };

let chosen = "buffered";

/** Those that there are for a model of the server's; the first is used unless another was chosen. */
export function transports(model) {
  const found = [];
  const buffered = Source?.isTypeSupported(model.mime);
  if (buffered) found.push("buffered");
  if (model.webrtc && window.RTCPeerConnection) found.push("webrtc");
  if (!buffered) found.push("pictures"); // every browser has them
  const before = localStorage.getItem(KEY);
  chosen = found.includes(before) ? before : found[0];
  return found;
}

export const transport = () => chosen;

/** Streams that are open are opened anew. */
export function choose(name) {
  localStorage.setItem(KEY, name);
  location.reload();
}

export const newPlayer = (video, id) => new PLAYERS[chosen](video, id);
