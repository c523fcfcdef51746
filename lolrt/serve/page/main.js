// The page: which streams are on it, which of them is steered, and what the instruments show of that one.

import * as api from "./api.js";
import { clock } from "./charts.js";
import { drawInstruments } from "./instruments.js";
import { download, Pane } from "./pane.js";
import { choose as chooseTransport, transport, transports } from "./transport.js";

const LETTERS = "ABCDEFGH";
const DRAW_MS = 250;

const by = (id) => document.getElementById(id);
const say = (text) => (by("live").textContent = text);
const panes = [];
let chosen = null;
let model = null;

function draw() {
  drawInstruments(chosen?.stream);
}

function notice(text) {
  by("notice").textContent = text;
  by("notice").hidden = !text;
}

/** An error as a sentence. */
function said(error) {
  const text = error.message[0].toUpperCase() + error.message.slice(1).replace(/\.$/, "");
  return error.retryAfter ? `${text}. Try again in ${error.retryAfter} s.` : `${text}.`;
}

/** Runs what a button asked for; what the server refuses is told. */
async function tried(action) {
  try {
    notice("");
    return await action();
  } catch (error) {
    notice(said(error));
  }
}

// Streams on the stage.

function letter() {
  return [...LETTERS].find((each) => !panes.some((pane) => pane.letter === each)) ?? "·";
}

/** parent: the pane that it was branched from, if any. */
function show(id, parent) {
  const there = panes.find((pane) => pane.stream.id === id);
  if (there) return choose(there);
  const pane = new Pane(id, letter(), parent, does, changed, arrived);
  panes.push(pane);
  by("stage").append(pane.root);
  arranged();
  choose(pane);
}

function arranged() {
  by("stage").dataset.count = panes.length;
  by("empty").hidden = panes.length > 0;
  const hash = new URLSearchParams({ streams: panes.map((pane) => pane.stream.id).join(",") });
  history.replaceState(null, "", panes.length ? `#${hash}` : location.pathname);
  for (const pane of panes) pane.button("steer").hidden = panes.length < 2;
}

function choose(pane) {
  chosen = pane;
  document.body.dataset.letter = panes.length > 1 ? pane.letter : "A";
  for (const each of panes) {
    each.root.classList.toggle("chosen", each === pane && panes.length > 1);
    each.button("steer").setAttribute("aria-pressed", each === pane);
  }
  for (const mark of ["whose", "instruments-whose", "history-whose"]) {
    by(mark).hidden = panes.length < 2;
    by(mark).textContent = pane?.letter ?? "";
    by(mark).dataset.letter = pane?.letter ?? "";
  }
  by("progress").textContent = "";
  by("prompt-label").textContent = panes.length > 1 ? `What stream ${pane.letter} shows next` : "What the video shows next";
  for (const part of by("dock").elements) part.disabled = !pane;
  if (pane) by("hls").href = api.playlist(pane.stream.id);
  by("hls").hidden = !pane;
  by("links").hidden = api.hasToken(); // a link cannot carry one
  listPrompts();
  draw();
}

const told = new Map();

/** The first picture of a new prompt is on the screen. */
function arrived(pane) {
  if (pane === chosen) by("progress").textContent = `On the screen after ${pane.stream.latency.toFixed(2)} s`;
}

function changed(pane) {
  if (pane === chosen) document.title = pane.stream.current ? `${pane.stream.current.prompt} · lolrt` : "lolrt";
  const { state, prompts } = pane.stream;
  if (told.get(pane) !== state) {
    told.set(pane, state);
    say({ live: "Playing", paused: "Paused", broken: "The server is gone, reconnecting", over: "The stream has ended", failed: "The stream has failed" }[state] ?? "");
    if (state === "live") listOthers();
  }
  if (pane === chosen && Number(by("history").dataset.count) !== prompts.length) listPrompts();
}

const does = {
  choose,
  steer: (pane) => {
    choose(pane);
    by("prompt").focus();
  },
  pause: (pane) => tried(() => (pane.stream.state === "paused" ? api.goOn : api.pause)(pane.stream.id)),
  branch: (pane) =>
    tried(async () => {
      const made = await api.branch(pane.stream.id);
      show(made.id, pane);
      say(`Branched: stream ${chosen.letter} goes on from the same moment`);
      if (matchMedia("(pointer: fine)").matches) by("prompt").focus(); // elsewhere a keyboard would cover the video
    }),
  record: (pane) => {
    const { player } = pane.stream;
    const button = pane.button("record");
    if (player.recording) {
      const made = player.recorded();
      if (made) download(URL.createObjectURL(made), `lolrt-${pane.stream.id}.mp4`);
      say(made ? "Recording saved" : "Nothing was recorded");
    } else {
      player.record();
      say("Recording");
    }
    button.setAttribute("aria-pressed", Boolean(player.recording));
    button.textContent = player.recording ? "Stop and save" : "Record";
  },
  save: (pane) => tried(async () => download(await api.snapshot(pane.stream.id), `lolrt-${pane.stream.id}.snapshot.safetensors`)),
  full: (pane) => (document.fullscreenElement ? document.exitFullscreen() : pane.part(".screen").requestFullscreen()).catch(() => {}),
  close: (pane) => {
    panes.splice(panes.indexOf(pane), 1);
    pane.close();
    tried(() => api.remove(pane.stream.id)).then(listOthers);
    arranged();
    choose(panes.at(-1) ?? null);
    by("new").focus();
  },
};

// The prompt.

by("dock").addEventListener("submit", async (event) => {
  event.preventDefault();
  const prompt = by("prompt").value.trim();
  if (!prompt || !chosen) return;
  by("prompt-error").textContent = "";
  by("prompt").removeAttribute("aria-invalid");
  try {
    await chosen.stream.steer(prompt, by("transition").valueAsNumber || 1);
    by("progress").textContent = "On its way";
  } catch (error) {
    by("prompt-error").textContent = said(error);
    by("prompt").setAttribute("aria-invalid", "true");
  }
});
by("transition").addEventListener("input", () => (by("plural").hidden = by("transition").valueAsNumber === 1));

function listPrompts() {
  const prompts = chosen?.stream.prompts ?? [];
  by("history").dataset.count = prompts.length;
  by("history").replaceChildren(
    ...prompts.toReversed().map(({ time, prompt }) => {
      const item = document.createElement("li");
      const when = document.createElement("time");
      when.textContent = clock(time);
      const again = document.createElement("button");
      again.type = "button";
      again.className = "text";
      again.textContent = prompt;
      again.title = "Take this prompt again";
      again.addEventListener("click", () => {
        by("prompt").value = prompt;
        by("prompt").focus();
      });
      item.append(when, again);
      return item;
    }),
  );
  by("earlier").replaceChildren(...[...new Set([...prompts.map((each) => each.prompt), ...(model?.example_prompts ?? [])])].map((prompt) => new Option(prompt)));
}

function listWords() {
  by("words").replaceChildren(
    ...model.example_prompts.slice(0, 4).map((prompt) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chip";
      button.textContent = prompt;
      button.addEventListener("click", () => {
        by("prompt").value = prompt;
        by("dock").requestSubmit();
      });
      return button;
    }),
  );
}

// New streams, and those of others.

const settings = by("settings-form").elements;

for (const button of [by("new"), by("empty-new")]) button.addEventListener("click", openSettings);

function openSettings() {
  by("settings-error").textContent = "";
  if (!settings.prompt.value) settings.prompt.value = model?.example_prompts?.[0] ?? "";
  by("settings").showModal();
}
by("settings-cancel").addEventListener("click", () => by("settings").close());
by("settings-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = {
    prompt: settings.prompt.value.trim(), seed: settings.seed.valueAsNumber,
    probe: true,
    rope: { sigma: settings.sigma.valueAsNumber, positions: settings.positions.value },
    window: { sink_frames: settings.sink_frames.valueAsNumber },
    lora: settings.lora.value ? [{ name: settings.lora.value, scale: settings.scale.valueAsNumber }] : null,
  };
  try {
    const made = await api.create(wanted);
    by("settings").close();
    show(made.id);
  } catch (error) {
    by("settings-error").textContent = said(error);
  }
});

async function listOthers() {
  const all = await api.sessions().catch(() => []);
  const others = all.filter(({ id }) => !panes.some((pane) => pane.stream.id === id));
  by("others").hidden = !others.length;
  by("other").replaceChildren(new Option(`${others.length} more`, ""), ...others.map(({ id, prompt }) => new Option(prompt ?? id, id)));
}
by("other").addEventListener("change", () => {
  if (by("other").value) show(by("other").value);
  listOthers();
});

// The beginning.

/** A stream of one's own; where there is no room for it, the newest of the others. */
async function first() {
  const [prompt] = model.example_prompts;
  if (!prompt) return openSettings();
  try {
    show((await api.create({ prompt, seed: Math.floor(Math.random() * 1000), probe: true })).id);
  } catch (error) {
    const others = await api.sessions();
    if (error.status !== 429 || !others.length) throw error;
    show(others.at(-1).id);
    notice("There is no room for a stream of your own just now. This is one that others watch.");
  }
}

async function begin() {
  try {
    [model] = await api.models();
  } catch (error) {
    if (error.status !== 401) throw error;
    by("token-error").textContent = api.hasToken() ? "That is not the server's token." : "";
    by("token-form").reset();
    return by("token").showModal();
  }
  const asked = new URLSearchParams(location.hash.slice(1)).get("streams")?.split(",").filter(Boolean) ?? [];
  by("model").textContent = `${model.id} · ${model.width} × ${model.height} · ${model.fps} frames/s`;
  settings.positions.replaceChildren(...model.positions.map((each) => new Option(each)));
  settings.positions.value = model.rope.positions;
  settings.sigma.value = model.rope.sigma;
  settings.sink_frames.value = model.window.sink_frames;
  by("adapters").hidden = !model.lora_modules.length;
  settings.lora.replaceChildren(new Option("none", ""), ...model.lora_modules.map((each) => new Option(each)));
  const ways = transports(model);
  by("transports").hidden = ways.length < 2;
  for (const option of by("transport").options) option.hidden = option.disabled = !ways.includes(option.value);
  by("transport").value = transport();
  listWords();
  for (const id of asked) {
    const found = await api.session(id).catch(() => null);
    if (found && found.state !== "ended") show(id);
  }
  if (!panes.length) await first();
  if (asked.length > panes.length) notice("A stream of this address has ended.");
  listOthers();
}

by("transport").addEventListener("change", () => chooseTransport(by("transport").value));
setInterval(() => document.hidden || draw(), DRAW_MS);
addEventListener("resize", draw);
by("token-form").addEventListener("submit", () => {
  api.useToken(by("token-form").elements.token.value.trim());
  tried(begin);
});
choose(null);
api.takeToken();
tried(begin);
