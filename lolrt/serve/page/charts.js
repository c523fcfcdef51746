// The pictures beside the video: a heat map of layers by heads, and the score, which has all of a stream on one axis of time.

const PAST_SECONDS = 60;
const COMING_SECONDS = 15;
const LABEL_HEIGHT = 14;
const MOST_PHASE = 0.6; // of the phase kernel: what it reaches when it comes back
const MOST_ROWS = 48; // of the score's map; with more, a row is a layer's mean

/** Colours and fonts of the style sheet, as it stands now. */
function style(canvas) {
  const computed = getComputedStyle(canvas);
  const value = (name) => computed.getPropertyValue(name).trim();
  return {
    ramp: ["--heat-0", "--heat-1", "--heat-2", "--heat-3"].map((name) => rgb(value(name))),
    ink: value("--ink"), quiet: value("--quiet"), rule: value("--rule"), alarm: value("--alarm"), accent: value("--accent"),
    font: computed.fontFamily,
  };
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function colour(ramp, share) {
  const at = Math.min(0.999, Math.max(0, share)) * (ramp.length - 1);
  const below = Math.floor(at), part = at - below;
  return `rgb(${ramp[below].map((from, i) => Math.round(from + part * (ramp[below + 1][i] - from))).join(" ")})`;
}

/** A canvas's context in CSS pixels, as large as it is laid out, and cleared. */
function context(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height, ...style(canvas) };
}

export const clock = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return (h ? [h, String(m).padStart(2, "0")] : [m]).concat(String(s).padStart(2, "0")).join(":");
};

/** mass: [layers][heads], shares of attention; most: what the strongest colour stands for. */
export function drawHeat(canvas, mass, most) {
  const { pen, width, height, ramp, quiet, font } = context(canvas);
  if (!mass?.length) return;
  const [layers, heads] = [mass.length, mass[0].length];
  const left = 18, bottom = 16, gap = layers * heads > 200 ? 0 : 2;
  const [wide, tall] = [(width - left) / heads, (height - bottom) / layers];
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      pen.fillStyle = colour(ramp, mass[layer][head] / most);
      pen.fillRect(left + head * wide, layer * tall, wide - gap, tall - gap);
    }
  }
  pen.fillStyle = quiet;
  pen.font = `10px ${font}`;
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const each = Math.max(1, Math.ceil(14 / tall));
  for (let layer = 0; layer < layers; layer += each) pen.fillText(layer, 0, (layer + 0.5) * tall);
  pen.textAlign = "center";
  pen.textBaseline = "bottom";
  const across = Math.max(1, Math.ceil(16 / wide));
  for (let head = 0; head < heads; head += across) pen.fillText(head, left + (head + 0.5) * wide - gap / 2, height);
}

/** What a chunk's mass is in the score: a row a head, or a row a layer. */
export function rowsOf(mass) {
  const flat = mass.flat();
  return flat.length <= MOST_ROWS ? flat : mass.map((heads) => heads.reduce((sum, each) => sum + each, 0) / heads.length);
}

/** The times that the score shows at a moment of a stream. */
export function span(now) {
  const from = Math.max(0, now - PAST_SECONDS);
  return { from, to: from + PAST_SECONDS + COMING_SECONDS };
}

/** stream: {chunks: [{time, seconds, rows, mean, made, late}], prompts: [{time, prompt}], phases: [{time, value}], returns: [{time, frame}], now,
    most, mostMean, deadline}; times in seconds of the stream. */
export function drawScore(canvas, stream) {
  const { pen, width, height, ramp, ink, quiet, rule, alarm, accent, font } = context(canvas);
  const { from, to } = span(stream.now);
  const x = (time) => ((time - from) / (to - from)) * width;
  const lanes = { map: [24, height - 124], mean: [height - 116, height - 62], made: [height - 50, height - 20] };
  pen.font = `11px ${font}`;

  const shown = stream.chunks.filter((chunk) => chunk.time + chunk.seconds > from);
  drawMap(pen, lanes.map, shown, x, ramp, stream.most);
  drawPhases(pen, lanes.mean, stream.phases, x, quiet);
  drawMean(pen, lanes.mean, shown, x, stream.mostMean, { accent, quiet, rule, width });
  drawMade(pen, lanes.made, shown, x, stream.deadline, { ink, quiet, alarm, rule, width });

  const ends = []; // of the labels in each row: where there is no room beside one, the next goes below it
  for (const { time, frame } of stream.returns.filter(({ time }) => time >= from && time <= to)) {
    pen.strokeStyle = pen.fillStyle = ink;
    pen.setLineDash([3, 3]);
    line(pen, x(time), lanes.map[0], x(time), lanes.made[1]);
    pen.setLineDash([]);
    label(pen, `frame ${frame}`, x(time) + 4, lanes.map[0] + 4, width, ends);
  }
  pen.textBaseline = "middle";
  stream.prompts.forEach(({ time, prompt }, i) => {
    const until = stream.prompts[i + 1]?.time ?? to;
    if (until < from || time > to) return;
    const begin = Math.max(0, x(time));
    if (time >= from) {
      pen.strokeStyle = accent;
      line(pen, x(time), 0, x(time), lanes.made[1]);
    }
    pen.fillStyle = ink;
    pen.fillText(fitted(pen, prompt, x(Math.min(until, to)) - begin - 10), begin + 5, 10);
  });

  pen.strokeStyle = rule;
  line(pen, x(stream.now), 22, x(stream.now), lanes.made[1]);
  pen.fillStyle = quiet;
  pen.textBaseline = "bottom";
  const step = width < 480 ? 15 : 10;
  for (let time = Math.ceil(from / step) * step; time < to; time += step) {
    pen.textAlign = time === 0 ? "left" : "center";
    pen.fillText(clock(time), x(time), height);
  }
  pen.textAlign = "left";
}

function drawMap(pen, [top, end], chunks, x, ramp, most) {
  for (const { time, seconds, rows } of chunks.filter((chunk) => chunk.rows)) {
    const tall = (end - top) / rows.length;
    rows.forEach((value, row) => {
      pen.fillStyle = colour(ramp, value / most);
      pen.fillRect(x(time), top + row * tall, x(time + seconds) - x(time) + 0.5, tall + 0.5);
    });
  }
}

function drawPhases(pen, [top, end], phases, x, quiet) {
  pen.strokeStyle = quiet;
  pen.setLineDash([1, 2]);
  pen.beginPath();
  for (const { time, value } of phases) pen.lineTo(x(time), end - Math.min(1, Math.max(0, value) / MOST_PHASE) * (end - top));
  pen.stroke();
  pen.setLineDash([]);
}

function drawMean(pen, [top, end], chunks, x, most, { accent, quiet, rule, width }) {
  pen.strokeStyle = rule;
  line(pen, 0, end, width, end);
  pen.strokeStyle = accent;
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (const { time, seconds, mean } of chunks.filter((chunk) => chunk.mean !== undefined)) {
    pen.lineTo(x(time + seconds / 2), end - Math.min(1, mean / most) * (end - top));
  }
  pen.stroke();
  pen.lineWidth = 1;
  pen.fillStyle = quiet;
  pen.textAlign = "right";
  pen.textBaseline = "bottom";
  pen.fillText(`mean mass, to ${most.toFixed(2)}`, width, end - 2);
  pen.textAlign = "left";
}

function drawMade(pen, [top, end], chunks, x, deadline, { ink, quiet, alarm, rule, width }) {
  const most = 1.25 * deadline;
  for (const { time, seconds, made, late } of chunks) {
    pen.fillStyle = late ? alarm : quiet;
    const tall = Math.min(1, made / most) * (end - top);
    pen.fillRect(x(time), end - tall, Math.max(1, x(time + seconds) - x(time) - 1), tall);
  }
  pen.strokeStyle = ink;
  pen.setLineDash([1, 3]);
  line(pen, 0, end - (deadline / most) * (end - top), width, end - (deadline / most) * (end - top));
  pen.setLineDash([]);
  pen.strokeStyle = rule;
  line(pen, 0, end, width, end);
  pen.fillStyle = quiet;
  pen.textAlign = "right";
  pen.textBaseline = "bottom";
  pen.fillText(`time of a chunk, deadline ${deadline.toFixed(2)} s`, width, end - 2);
  pen.textAlign = "left";
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

function label(pen, text, x, y, width, ends) {
  pen.textBaseline = "top";
  const wide = pen.measureText(text).width;
  const left = x + wide > width ? x - wide - 8 : x;
  let row = 0;
  while (ends[row] > left - 6) row++;
  ends[row] = left + wide;
  pen.fillText(text, left, y + LABEL_HEIGHT * row);
}

function fitted(pen, text, width) {
  if (width < 12) return "";
  if (pen.measureText(text).width <= width) return text;
  let length = text.length;
  while (length && pen.measureText(text.slice(0, length) + "…").width > width) length--;
  return length ? text.slice(0, length) + "…" : "";
}
