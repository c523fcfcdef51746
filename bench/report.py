"""Writes docs/benchmarks.md, and its pictures, from the JSON of a run, or of several: `python -m bench.report out/bench.json`.

Nothing is measured here. Every section says what its figures contain and which command made them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results import Results
from bench.targets import TARGETS
from lolrt.bench.row import duration

DOCS = Path(__file__).parent.parent / "docs"
# The section that `python -m bench.serving` writes: another run, on another day.
SERVING = "Serving"


@dataclass(frozen=True)
class Section:
    title: str
    contains: str
    """What the figures are, in a sentence or a few."""
    body: str
    command: str

    def __str__(self) -> str:
        return f"## {self.title}\n\n{self.contains} Made by `{self.command}`.\n\n{self.body}\n"


def report(results: Results, pictures: Path) -> str:
    """The document; its pictures are written beside it."""
    import matplotlib

    matplotlib.use("Agg")
    sections = [
        targets(results),
        *ops(results),
        roofline(results, pictures),
        *stages(results),
        *growth(results, pictures),
        codegen(results),
    ]
    machine = "\n".join(f"- {name}: {text}" for name, text in results.machine.items())
    head = (
        f"# Benchmarks\n\nRun of {results.date} by `{results.command}` on\n\n{machine}\n\n"
        "Ratios are times of the peer divided by ours, taken in turns in one process: above 1, ours is faster. Figures in parentheses are "
        "the quartiles of the rounds. The peak is the best rate that torch's own matrix product (or copy) reached on the same threads, in "
        "the same process, seconds before. An instruction set holds our kernels and, as far as they can be held, torch's libraries.\n"
    )
    return "\n".join([head, *map(str, filter(None, sections))])


def parts(document: str) -> dict[str, str]:
    """The text under each title of the second level of a document."""
    found = re.split(r"^(?=## )", document, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part for part in found}


def with_section(document: str, section: Section) -> str:
    """A document with a section in place of the old text under that title, or at its end."""
    found = parts(document)
    head = document[: document.index(next(iter(found.values())))] if found else document
    found[section.title] = str(section)
    return "\n".join(part.strip() + "\n" for part in [head, *found.values()] if part.strip())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def targets(results: Results) -> Section:
    rows = []
    for target in TARGETS:
        found = target.measured(results)
        values = "; ".join(f"{where}: {mid:.2f} ({low:.2f}-{high:.2f})" for where, (low, mid, high) in found)
        verdict = "" if not found else "met" if all(mid >= target.least for _, (_, mid, _) in found) else "missed"
        if verdict == "missed" and any(mid >= target.least for _, (_, mid, _) in found):
            verdict = "met by some"
        rows.append([target.measure, target.wanted, values or "not measured in this run", verdict])
    rows.append(
        ["heap allocations made by the kernels after warm-up", "0", "asserted by tests/cpp/test_allocations.cpp (`make sanitize`)", ""]
    )
    return Section(
        "Targets",
        "On all cores. Kernels and shape are named before each value; medians of the rounds' ratios.",
        table(["measure", "target", "measured", ""], rows),
        results.command,
    )


def ops(results: Results) -> list[Section]:
    sections = []
    for op in dict.fromkeys(row.op for row in results.rows):
        rows = [row for row in results.rows if row.op == op]
        header = ["shape", "dtype", "kernels", "threads", "rounds", "median", "rate", "of peak", "peer's time / ours"]
        cells = [[row.shape, *row.cells()[1:6], *row.cells()[7:]] for row in rows]
        sections.append(Section(f"`{op}`", CONTAINS.get(op, DEFAULT_CONTAINS), table(header, cells), results.command))
    return sections


DEFAULT_CONTAINS = "One call of the op, outputs allocated by it."
CONTAINS = {
    "frame_attention": "One call on one layer and chunk: rotation of Q by time, softmax attention over all pages of the window, the "
    "output's allocation. Peers rotate q by time and place in complex128 as published (ours got its place with the norm before); "
    "their keys are cached rotated. 4 FLOP per query, key, channel and head.",
    "kv_write": "One call on one layer and chunk: RMSNorm, weight and rotation of K, packing of K and V. Both are read and written once.",
    "normalize_queries": "One call on one layer and chunk: RMSNorm, weight, rotation, the output's allocation. q is read and written once.",
    "modulated_norm": "One call on one layer and chunk, gated residual included: four tensors moved once.",
    "gelu": "One call on one layer and chunk, in place, on the feed-forward's hidden channels: read and written once.",
    "sampler_step": "One step of one chunk's latents, from a noise level to the next one; the output's allocation. Float64 inside.",
    "channel_norm": "RMSNorm over channels and SiLU, with the margin of zeros around the result. Images are read and written once.",
    "conv3d": "A 3 x 3 x 3 convolution in float32, its past frames given apart. FLOP of the products.",
    "dit_pass": "One forward pass of the model over a full window: patch embedding, blocks (attention, cross-attention, feed-forward, "
    "norms, modulation), head. No text encoder, no sampler. FLOP of the products.",
    "chunk": "The latents of one chunk over a full window: noise, all denoise passes, the cache pass, the sampler. No VAE, no writer.",
    "vae_decode": "One latent frame to four video frames, float32 in [-1, 1], the carried frames included. FLOP of the products.",
}


def roofline(results: Results, pictures: Path) -> Section | None:
    """One point per row with all threads; one roof for each peak."""
    from matplotlib import pyplot

    most = max((row.threads for row in results.rows), default=0)
    rows = [row for row in results.rows if row.threads == most]
    copies = [row.peak for row in rows if row.bound == "bytes"]
    if not rows or not copies:
        return None
    bandwidth = max(copies)
    figure, axis = pyplot.subplots(figsize=(9, 5.2), constrained_layout=True)
    roofs = {(row.isa, row.peak_name): row.peak for row in rows if row.bound == "flops"}
    intensities = [row.flops / row.bytes for row in rows]
    left, right = min(intensities) / 2, max(intensities) * 2
    for (isa, name), peak in roofs.items():
        corner = peak / bandwidth
        line = axis.plot([left, corner, max(right, corner)], [left * bandwidth / 1e9, peak / 1e9, peak / 1e9], linewidth=1)[0]
        axis.annotate(f"{name}, {isa}", (right, peak / 1e9), ha="right", va="bottom", fontsize=7, color=line.get_color())
    for marker, op in zip("osD^vP*X", dict.fromkeys(row.op for row in rows), strict=False):
        points = [(row.flops / row.bytes, row.flops / row.seconds[1] / 1e9) for row in rows if row.op == op]
        axis.plot(*zip(*points, strict=True), marker, label=op, markersize=5)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s")
    axis.legend(fontsize=7, loc="lower right")
    axis.grid(True, which="both", linewidth=0.3)
    figure.savefig(pictures / "roofline.png", dpi=110)
    pyplot.close(figure)
    contains = (
        f"Every row with {most} threads: FLOP and bytes as the formula demands them, over the median time. Flat roofs are the best "
        "matrix products, the slope is the fastest copy of any row's bytes (small tensors stay in cache)."
    )
    return Section("Roofline", contains, "![Roofline](roofline.png)", results.command)


def stages(results: Results) -> list[Section]:
    figures = results.figures("stages")
    if not figures:
        return []
    names = dict.fromkeys(stage for figure in figures for stage in figure["stages"])
    rows = []
    for figure in figures:
        total = sum(figure["stages"].values())
        cells = [f"{figure['stages'].get(name, 0.0) / total:.1%}" for name in names]
        rows.append([figure["model"], figure["isa"], str(figure["threads"]), duration(total), *cells])
    contains = (
        "A chunk over a full window: from noise to the video file, or, of the one layer, its latents alone. Medians of the chunks. "
        "Attention is the op, the text's included; linear are the DiT's; the writer encodes H.264; the rest is torch's other work and "
        "Python."
    )
    return [Section("Where a chunk's time goes", contains, table(["model", "kernels", "threads", "time", *names], rows), results.command)]


GROWTH = {
    "frames": ("latent frames generated", "Video of the embedded model, without the writer: medians of thirty chunks each."),
    "window": ("pages in the window", "Latents of a chunk of the embedded model over a full window."),
    "threads": ("threads", "Video of a chunk of the embedded model over a full window, without the writer."),
}


def growth(results: Results, pictures: Path) -> list[Section]:
    from matplotlib import pyplot

    sections = []
    for name, (unit, contains) in GROWTH.items():
        found = [figure for figure in results.figures("growth") if figure["growth"] == name]
        x = [value for figure in found for value in (figure["x"] if isinstance(figure["x"], list) else [figure["x"]])]
        y = [value for figure in found for value in figure.get("seconds", [figure["median"]])]
        if not x:
            continue
        figure, axis = pyplot.subplots(figsize=(6, 3), constrained_layout=True)
        axis.plot(x, [value * 1e3 for value in y], "o-")
        axis.set(xlabel=unit, ylabel="ms a chunk", ylim=(0, None))
        figure.savefig(pictures / f"growth-{name}.png", dpi=110)
        pyplot.close(figure)
        cells = [[str(at), duration(seconds), f"{seconds / y[0]:.2f}"] for at, seconds in zip(x, y, strict=True)]
        body = f"![Time of a chunk against {unit}](growth-{name}.png)\n\n" + table([unit, "time of a chunk", "to the first"], cells)
        kernels = f" Kernels: {found[0]['isa']}, {'' if name == 'threads' else str(found[0]['threads']) + ' threads, '}bf16."
        sections.append(Section(f"How the cost grows with {unit}", contains + kernels, body, results.command))
    return sections


def codegen(results: Results) -> Section | None:
    if not results.codegen:
        return None
    contains = (
        "Instructions of the innermost loops with the most multiply-adds, per round of the loop. The floor counts the multiply-adds and "
        "the fewest operand loads that a block of that many accumulators needs. A spill stores a vector register to the stack, a reload "
        "reads it."
    )
    return Section("Inner loops", contains, table(results.codegen[0], results.codegen[1:]), "python -m bench.codegen")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Writes docs/benchmarks.md from the JSON of runs.")
    parser.add_argument("json", type=Path, nargs="*", default=[Path("out/bench.json")], help="of one machine, the best kernels' first")
    results = Results.read(*parser.parse_args().json)
    path = DOCS / "benchmarks.md"
    serving = parts(path.read_text()).get(SERVING, "") if path.exists() else ""
    path.write_text("\n".join(filter(None, [report(results, DOCS), serving])))
    print(path)


if __name__ == "__main__":
    main()
