// The numbers, the heat map and the score of one stream.

import { clock, drawHeat, drawScore, span } from "./charts.js";
import { videoFrame } from "./stream.js";

const by = (id) => document.getElementById(id);

/** The phase kernel between two video frames, and its returns. */
function predicted(stream, from, to) {
  if (!stream?.kernel) return [[], []];
  const { info, kernel } = stream;
  const time = (frame) => videoFrame(frame, info) / info.fps;
  const [first, last] = [from, to].map((frame) => Math.floor(frame / info.temporal_factor));
  const phases = [...Array(last - first + 1).keys()].map((i) => ({ time: time(first + i), value: kernel.at(first + i) }));
  return [phases, kernel.returns(first, last).map((frame) => ({ time: time(frame), frame }))];
}

const fixed = (value, digits) => (value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits));

function number(id, value, bad = false) {
  if (by(id).textContent === value) return;
  by(id).textContent = value;
  by(id).closest("div").classList.toggle("bad", bad);
}

/** Shows what is known of a stream, or that there is none. */
export function drawInstruments(stream) {
  const last = stream?.chunks.at(-1);
  const deadline = last?.seconds ?? 0.75;
  number("rate", fixed(stream?.rate, 1));
  number("made", fixed(last?.made, 2), last?.late);
  by("deadline").textContent = fixed(deadline, 2);
  number("met", stream?.met.of ? fixed((100 * stream.met.count) / stream.met.of, 1) : "–");
  number("latency", fixed(stream?.latency, 2));
  number("behind", fixed(stream?.behind, 2));
  number("stalls", String(stream?.player.stalls ?? 0), stream?.player.stalls > 0);
  by("lost").textContent = stream?.lost ? `and ${stream.lost} chunks lost` : "so far";
  const shown = stream?.chunks ?? [];
  // Until the window is full, sinks are most of what there is to look at.
  const full = shown.filter((chunk) => chunk.full);
  const measured = (full.length ? full : shown).filter((chunk) => chunk.mass);
  const values = measured.flatMap((chunk) => chunk.rows).sort((a, b) => a - b);
  const most = Math.max(0.01, values[Math.floor(0.995 * values.length)] ?? 0); // a single peak does not darken all else
  const mostMean = Math.max(0.01, ...measured.map((chunk) => chunk.mean));
  const current = stream?.current ?? last;
  drawHeat(by("heat"), current?.mass, most);
  by("heat-most").textContent = most.toFixed(2);
  by("heat-text").textContent = current?.mass ? `Mean ${fixed(current.mean, 2)}, most ${fixed(Math.max(...current.mass.flat()), 2)} of a head's attention.` : "This stream is not measured.";
  const fps = stream?.info?.fps ?? 16;
  const { from, to } = span(stream?.now ?? 0);
  const [phases, returns] = predicted(stream, from * fps, to * fps);
  drawScore(by("score"), { chunks: shown, prompts: stream?.prompts ?? [], phases, returns, now: stream?.now ?? 0, most, mostMean, deadline });
  const coming = returns.find(({ time }) => time > (stream?.now ?? 0));
  by("score-text").textContent = last
    ? `Mean attention on the sinks ${fixed(last.mean, 2)}. ${coming ? `The next predicted return is frame ${coming.frame}, at ${clock(coming.time)}.` : "No return is predicted soon."}`
    : "";
  by("about").textContent = stream?.info ? about(stream.info) : "";
}

const about = ({ seed, rope, window, lora }) => `This stream: seed ${seed}, sigma ${rope.sigma}, ${window.sink_frames} sinks, ${rope.positions} positions${lora.length ? `, adapters ${lora.join(", ")}` : ""}.`;
