"""`lolrt serve` against its targets, with a real browser: `python -m bench.serving`, some minutes on a quiet machine; needs Chromium.

Writes the part "Serving" of docs/benchmarks.md: the targets, and the table of `lolrt bench serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import DOCS, SERVING, Section, table, with_section
from lolrt.bench.machine import describe
from lolrt.bench.serve import Plan, Report, Server, measure

sys.path.insert(0, str(DOCS.parent / "tests"))

from browser import Browser, Page

# Records, by the wall clock in ms, when pictures appear on the screen: for each video of the page, with their times in the stream.
PICTURES = """
window.pictures = [];
new MutationObserver(() => document.querySelectorAll('video').forEach((video, at) => {
  if (video.seen) return;
  video.seen = true;
  const each = (now, { mediaTime, expectedDisplayTime }) => {
    pictures.push([at, mediaTime, performance.timeOrigin + expectedDisplayTime]);
    video.requestVideoFrameCallback(each);
  };
  video.requestVideoFrameCallback(each);
})).observe(document, { childList: true, subtree: true });
"""
SUBMIT = """(() => {
  document.getElementById('prompt').value = %r;
  document.getElementById('progress').textContent = '';
  document.getElementById('dock').requestSubmit();
})()"""
ARRIVED = "document.getElementById('progress').textContent.startsWith('On the screen after')"
LIVE = "document.querySelectorAll('.pane')[{at}]?.dataset.state === 'live' && pictures.some(([video]) => video === {at})"


@dataclass(frozen=True)
class Measured:
    what: str
    most: float
    """The target, in seconds."""
    seconds: list[float]

    @property
    def row(self) -> list[str]:
        low, middle, high = min(self.seconds), float(np.median(self.seconds)), max(self.seconds)
        verdict = "met" if high < self.most else "met by the median" if middle < self.most else "missed"
        return [self.what, f"< {self.most:g} s", f"{middle:.2f} ({low:.2f}-{high:.2f}) s, {len(self.seconds)} times", verdict]


def page_of(browser: Browser, address: str) -> Page:
    """A tab that records its pictures from the beginning."""
    page = browser.open("about:blank")
    page.call("Page.addScriptToEvaluateOnNewDocument", source=PICTURES)
    page.call("Page.navigate", url=address)
    return page


def first_pictures(browser: Browser, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from the start of a server to the first picture on its page, and from pressing Start to the first picture of a second
    stream."""
    first, second = [], []
    for _ in range(rounds):
        begun = time.time()
        with Server("--max-sessions", 2) as server:
            page = page_of(browser, server.address)
            page.until(LIVE.format(at=0), 120)
            first.append(page.js("pictures[0][2]") / 1000 - begun)
            time.sleep(3)  # at the live edge
            page.click("#new")
            page.until("document.getElementById('settings').open")
            pressed = page.js("document.getElementById('settings-form').requestSubmit(), performance.timeOrigin + performance.now()")
            page.until(LIVE.format(at=1), 120)
            second.append((page.js("pictures.find(([video]) => video === 1)[2]") - pressed) / 1000)
            page.close()
    return first, second


def prompts_and_glass(browser: Browser, prompts: int) -> tuple[list[float], list[float]]:
    """Seconds from new prompts to their first pictures, and from the decoding of a chunk to its first picture on the screen."""
    with Server("--max-sessions", 1) as server:
        page = page_of(browser, server.address)
        page.until(LIVE.format(at=0), 120)
        id = page.js("new URLSearchParams(location.hash.slice(1)).get('streams')")
        arrivals: list[tuple[float, dict[str, Any]]] = []
        threading.Thread(target=lambda: asyncio.run(_arrivals(server, id, arrivals)), daemon=True).start()
        time.sleep(5)
        latencies, words = [], server.prompts()
        for number in range(prompts):
            page.js(SUBMIT % words[(number + 1) % len(words)])
            page.until(ARRIVED, 60)
            latencies.append(page.js("Number(document.getElementById('progress').textContent.match(/[\\d.]+/)[0])"))
            time.sleep(2.1)
        shown = [(at, when / 1000) for _, at, when in page.js("pictures")]
        fps = page.js("Number(document.getElementById('model').textContent.match(/(\\d+) frames/)[1])")
        page.close()
    return latencies, list(_glass(arrivals, shown, fps))


async def _arrivals(server: Server, id: str, arrivals: list[tuple[float, dict[str, Any]]]) -> None:
    """When each chunk arrives, as another viewer sees it."""
    try:
        async for chunk in server.chunks(id, 0):
            arrivals.append((time.time(), chunk))
    except Exception:  # the server has ended, and there is nothing more to see
        return


def _glass(arrivals: Sequence[tuple[float, dict[str, Any]]], shown: Sequence[tuple[float, float]], fps: int) -> Iterator[float]:
    for arrived, chunk in arrivals[2:]:  # earlier pictures were there when the page was loaded
        begin = chunk["first_frame"] / fps
        found = next((when - (at - begin) for at, when in shown if begin - 0.25 / fps <= at < begin + chunk["seconds"]), None)
        if found is not None:
            yield found - arrived + chunk["stage_seconds"]["encode"]


def section(measured: Sequence[Measured], report: Report, chromium: str, command: str) -> Section:
    rows = [each.row for each in measured]
    deadlines, cost = report.attainment, 100 * report.viewers_cost
    seconds = f"{report.plan.sessions} live sessions at 16 frames/s, chunks before their deadline"
    rows.append([seconds, "≥ 99 %", f"{deadlines:.1f} %", "met" if deadlines >= 99 else "missed"])
    viewers = f"encoding for and sending to {report.plan.viewers} viewers, more than to the first"
    rows.append([viewers, "< 10 % of a core", f"{cost:.1f} %", "met" if cost < 10 else "missed"])
    machine = "; ".join(f"{name}: {value}" for name, value in describe().items())
    out = io.StringIO()
    print(table(["measure", "target", "median (least-most)", ""], rows), file=out)
    print(
        "\nFrom decoding to the screen is measured at the first picture of each chunk: the reserve of the player is most of it.", file=out
    )
    print(f"\n{report.about}\n\n{table(report.rows[0], report.rows[1:])}\n\n{report.more}", file=out)
    contains = f"`lolrt serve` with `tiny`, and its page in {chromium}, on one machine, on {date.today()}: {machine}."
    return Section(SERVING, contains, out.getvalue().rstrip(), command)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description="Measures lolrt serve against its targets.")
    parser.add_argument("--rounds", type=int, default=5, help="starts of a server")
    parser.add_argument("--prompts", type=int, default=10, help="new prompts")
    parser.add_argument("--seconds", type=float, default=60, help="that each of three sessions is watched")
    parser.add_argument("-o", "--output", type=Path, default=DOCS / "benchmarks.md", metavar="FILE", help="where the part goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        version = browser.version()
        first, second = first_pictures(browser, arguments.rounds)
        latencies, glass = prompts_and_glass(browser, arguments.prompts)
        browser.close()
    measured = [
        Measured("first picture on the page, from the start of the server", 3.0, first),
        Measured("first picture of a second stream, from the press on Start", 0.7, second),
        Measured("a new prompt to its first picture, at the live edge", 1.5, latencies),
        Measured("decoding to the screen, over loopback", 0.3, glass),
    ]
    report = measure(Plan(seconds=arguments.seconds))
    made = section(measured, report, version, "python -m bench.serving")
    path = arguments.output
    path.write_text(with_section(path.read_text() if path.exists() else "", made))
    print(made)
    print(path)


if __name__ == "__main__":
    main()
