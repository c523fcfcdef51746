// One stream on the stage: its video, what is said over it, and its buttons.

import { clock } from "./charts.js";
import { Stream } from "./stream.js";
import { newPlayer } from "./transport.js";

const LIVE = { starting: "Starting", live: "Live", paused: "Paused", broken: "Reconnecting", over: "Ended", failed: "Failed" };

export class Pane {
  /** parent: the pane that it was branched from, if any; does: what the buttons call, by name, with the pane. */
  constructor(id, letter, parent, does, changed, arrived) {
    this.letter = letter;
    this.root = document.getElementById("pane").content.cloneNode(true).firstElementChild;
    this.root.dataset.letter = letter;
    this.part = (name) => this.root.querySelector(name);
    this.part(".letter").textContent = letter;
    this.root.setAttribute("aria-label", `Stream ${letter}`);
    for (const button of this.root.querySelectorAll("[data-do]")) button.addEventListener("click", () => does[button.dataset.do](this));
    this.stream = new Stream(id, parent?.stream ?? null, newPlayer(this.part("video"), id), () => {
      this.draw();
      changed(this);
    });
    this.stream.onpicture = () => this.tick();
    this.stream.onarrived = () => arrived(this);
    this.part(".screen").addEventListener("click", () => does.choose(this));
    this.draw();
  }

  button(name) {
    return this.part(`[data-do="${name}"]`);
  }

  tick() {
    this.part(".clock").textContent = clock(this.stream.now);
    const now = this.stream.current?.prompt ?? "";
    if (this.part(".now").textContent !== now) {
      this.part(".now").textContent = now;
      this.stream.player.element.setAttribute("aria-label", `Stream ${this.letter}: ${now}`);
    }
  }

  draw() {
    const { state, reason } = this.stream;
    this.root.dataset.state = state;
    this.part(".live-text").textContent = LIVE[state];
    const over = state === "over" || state === "failed";
    const said = { starting: "Starting", paused: "Paused", broken: "The server is gone", over: "This stream has ended", failed: "This stream has failed" }[state];
    this.part(".veil").hidden = !said;
    this.part(".veil-title").textContent = said ?? "";
    this.part(".veil-text").textContent = reason;
    this.button("pause").textContent = state === "paused" ? "Go on" : "Pause";
    for (const name of ["pause", "branch", "record", "save"]) this.button(name).disabled = over || state === "broken" || state === "starting";
    this.button("record").hidden = !this.stream.player.wantsMedia;
    if (this.stream.info) {
      const { width, height } = this.stream.info;
      this.part(".screen").style.setProperty("--ratio", width / height);
    }
  }

  close() {
    this.stream.close();
    this.root.remove();
  }
}

/** Hands the file at an address to whoever looks at the page. */
export function download(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  if (address.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
