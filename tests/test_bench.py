"""The benchmarks' own arithmetic, registry and report, on numbers that are known; no test asserts a time."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from commands import output_of

from bench import full_size
from bench import stages as bench_stages
from bench.models import FRAME_WISE, MODEL_CASES, chunk, decoder_work, diffusers_decode
from bench.report import Section, parts, report, with_section
from bench.results import Results
from bench.targets import TARGETS
from lolrt import CausalVAE, DiTConfig, VAEConfig, _core, ops
from lolrt.bench import peers
from lolrt.bench.case import FP32, ODD, Case, Trial
from lolrt.bench.cases import CASES
from lolrt.bench.factories import frame_attention
from lolrt.bench.machine import cores, environment
from lolrt.bench.measure import Effort, Race, Spread
from lolrt.bench.peaks import Peaks
from lolrt.bench.row import Row, duration
from lolrt.bench.run import measure, race, selected
from lolrt.bench.table import aligned
from lolrt.cli import main
from lolrt.errors import Error
from lolrt.ops.threads import set_threads
from lolrt.positions.rope import rotation_tables

ROW = Row(
    name="frame_attention/1.3B", op="frame_attention", shape="1.3B", dtype="bfloat16", isa="avx512bf16", threads=2, n=5,
    seconds=(0.9, 1.0, 1.2), flops=90e9, bytes=1e9, bound="flops", peak=100e9, peak_name="bfloat16 GEMM",
    ratios={"RoPE + SDPA bfloat16": (2.9, 3.0, 3.1), "RoPE + SDPA float32": (2.3, 2.4, 2.5)},
)  # fmt: skip


def results(*rows: Row, **figures: dict[str, object]) -> Results:
    """A run as pytest-benchmark and `python -m bench` write it."""
    extras = [{"row": asdict(row)} for row in rows] + list(figures.values())
    data = {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"lolrt": {"cpu": "a CPU", "kernels": "avx512bf16"}},
        "benchmarks": [{"name": "x", "stats": {"median": 1.0, "data": [1.0]}, "extra_info": extra} for extra in extras],
    }
    return Results.joined([data], "make bench", [["policy", "all"], ["Avx2", "27"]])


def test_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(2.0, 3.0, 4.0)


def test_rounds_follow_the_effort():
    effort = Effort(seconds=2.0, least=5, most=20)
    assert [effort.rounds(seconds) for seconds in (0.001, 0.25, 10.0)] == [20, 8, 5]


def test_ratios_compare_turns_of_the_same_round():
    race = Race(lambda: None, {"peer": lambda: None}, tolerance=0.0)
    race.times = [1.0, 2.0, 4.0]
    race.peer_times["peer"] = [2.0, 4.0, 8.0]  # twice as slow in every turn; medians of all turns would show a spread
    assert race.ratios() == {"peer": Spread(2.0, 2.0, 2.0)}


def test_turns_alternate():
    calls: list[str] = []
    race = Race(lambda: calls.append("ours"), {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, tolerance=0.0)
    race.run(2)
    assert calls == ["a", "b", "ours"] * 2
    assert len(race.times) == len(race.peer_times["a"]) == len(race.peer_times["b"]) == 2


def test_a_peer_that_computes_something_else_is_refused():
    x = torch.ones(4)
    with pytest.raises(Error, match=r"peer differs from ours by 0\.1 "):
        Race(lambda: x, {"peer": lambda: 1.1 * x}, tolerance=0.05).warm_up()


def test_a_row_states_rate_and_fraction():
    assert ROW.rate == 90e9 and ROW.fraction == 0.9
    assert ROW.cells()[5:9] == ("1 s", "30%", "90 GFLOP/s", "90%")
    assert replace(ROW, bound="bytes", peak=2e9).cells()[7:9] == ("1 GB/s", "50%")


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.0125, "12.5 ms"), (4.2e-5, "42 us")])
def test_durations_have_units(seconds, text):
    assert duration(seconds) == text


def test_columns_line_up():
    assert aligned([["a", "b"], ["long", "12"]], left=(0,)) == "a      b\nlong  12"


def test_every_op_has_a_case_of_every_size():
    wrappers = {name for name, function in inspect.getmembers(ops, inspect.isfunction) if hasattr(torch.ops.lolrt, name)}
    assert wrappers
    for op in wrappers:
        shapes = " ".join(case.shape for case in CASES if case.op == op)
        assert all(size in shapes for size in ("tiny", "1.3B", "odd")), f"{op} has {shapes or 'no case'}"
        assert any(case.quick for case in CASES if case.op == op), f"a quick run leaves {op} out"


def test_names_tell_cases_apart():
    names = [(case.name, case.dtype) for case in (*CASES, *MODEL_CASES)]
    assert len(names) == len(set(names))


def test_selection():
    many = selected(CASES, quick=False, threads=cores(), best_isa=True)
    assert many == [case for case in CASES if case.runs_here()]
    assert selected(CASES, quick=True, threads=cores(), best_isa=True) == [case for case in many if case.quick]
    slow = replace(CASES[0], every_thread_count=False, best_isa_only=True)
    assert selected([slow], quick=False, threads=cores() + 1, best_isa=True) == []
    assert selected([slow], quick=False, threads=cores(), best_isa=False) == []
    elsewhere = replace(CASES[0], runs_here=lambda: False)
    assert selected([elsewhere], quick=False, threads=cores(), best_isa=True) == []


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.shape.startswith("odd") and case.runs_here()], ids=lambda case: f"{case.name}-{case.dtype}"
)
def test_peers_compute_the_same(case):
    trial = case.make(False)
    race(case, trial).warm_up()


def test_a_wrong_offset_would_be_noticed(monkeypatch):
    """The comparison with peers can fail: with an offset that is wrong by one frame, results differ."""
    monkeypatch.setattr("lolrt.bench.factories.rotation_tables", lambda increments, offsets: rotation_tables(increments, offsets + 1))
    case = frame_attention(ODD, FP32)
    with pytest.raises(Error, match="no fair peer"):
        race(case, case.make(False)).warm_up()


def test_a_frame_wise_chunk_is_that_of_the_published_code():
    """Of a smaller model: over a full window, which three more frames then pass through."""
    config = DiTConfig(dim=64, ffn_dim=48, freq_dim=16, text_dim=8, text_len=5, num_heads=2, num_layers=2)
    case = chunk(replace(FRAME_WISE, config=config, latent=(6, 10)), FP32)
    trial = case.make(False)
    for _ in range(3):
        assert trial.ours().shape == trial.peers["published"]().shape == (1, 16, 6, 10)
    race(case, trial).warm_up()


def test_measures_into_rows():
    threads = torch.get_num_threads()
    case = Case(
        "copy", "odd", FP32, 0.0, 4096.0, "bytes", lambda compiled: Trial(lambda: torch.ones(512), {"torch": lambda: torch.ones(512)})
    )
    try:
        (row,) = measure([case], Peaks(), 1, Effort(0.0, 3, 3), compiled=False)
    finally:
        set_threads(threads)
    assert (row.n, row.threads, row.isa, row.peak_name) == (3, 1, _core.isa(), "copy of the same bytes")
    assert row.seconds[0] <= row.seconds[1] <= row.seconds[2] and row.peak > 0
    assert set(row.ratios) == {"torch"}


def test_decoder_work_counts_the_decoder_s_weights():
    config = VAEConfig(dim=8, z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    matrices = sum(p.numel() for name, p in CausalVAE(config).decoder.named_parameters() if p.ndim > 1 and "gamma" not in name)
    assert decoder_work(config, (3, 5))[0] == matrices


@pytest.mark.whole
def test_diffusers_decodes_the_same_stream():
    pytest.importorskip("diffusers")
    config = VAEConfig(dim=8, z_dim=4, latents_mean=(0.5,) * 4, latents_std=(2.0,) * 4)
    torch.manual_seed(0)
    vae, latents, state = CausalVAE(config), torch.randn(1, 4, 4, 6), {}
    theirs = diffusers_decode(vae, latents)
    for _ in range(3):
        torch.testing.assert_close(theirs(), vae.decode(latents, state), atol=1e-4, rtol=1e-4)


def test_stages_count_each_call_once_and_put_everything_back(monkeypatch):
    ones, before = torch.ones(64, 64), F.linear
    monkeypatch.setattr(CausalVAE, "decode", lambda self: F.linear(ones, ones))
    seconds = bench_stages.of(lambda: CausalVAE.decode(None))
    assert set(seconds) == {"VAE", "rest"} and all(value > 0 for value in seconds.values())
    assert set(bench_stages.of(lambda: F.linear(ones, ones))) == {"linear", "rest"}
    assert F.linear is before


def test_the_rotation_for_torch_compile_is_the_published_one():
    x, turns = torch.randn(1, 24, 3, 12), peers.angles(range(5, 7), 3, 4, (4, 4, 4))
    torch.testing.assert_close(peers.rope_float32(x, turns.real.float(), turns.imag.float()), peers.rope(x, turns))


@pytest.mark.parametrize("isa", ["avx512bf16", "avx512", "avx2", "amx"])
def test_environment_holds_libraries_to_our_instruction_set(isa):
    variables = environment(isa)
    assert variables["LOLRT_ISA"] == isa
    assert variables.get("ONEDNN_MAX_CPU_ISA") == {"avx512bf16": "AVX512_CORE_BF16", "avx512": "AVX512_CORE_VNNI", "avx2": "AVX2"}.get(isa)


def test_targets_are_read_from_rows():
    values = {target.measure: target.measured(results(ROW, replace(ROW, threads=1, seconds=(9.0, 9.0, 9.0)))) for target in TARGETS}
    (where, (low, median, high)), *others = next(iter(values.values()))
    assert where == "avx512bf16, 1.3B" and not others
    assert (low, median, high) == pytest.approx((0.75, 0.9, 1.0))
    # The faster of torch's two dtypes counts.
    assert list(values.values())[1] == [("avx512bf16, 1.3B", (2.3, 2.4, 2.5))]
    assert sum(map(len, values.values())) == 2


@pytest.mark.whole
def test_the_report_gives_every_figure_a_command(tmp_path):
    pytest.importorskip("matplotlib")
    memory = replace(ROW, op="kv_write", name="kv_write/1.3B", bound="bytes", flops=1e9, ratios={"memcpy": (0.5, 0.6, 0.7)})
    run = results(
        ROW,
        memory,
        stages={"stages": {"linear": 3.0, "VAE": 1.0}, "model": "tiny", "isa": "avx512bf16", "threads": 2},
        frames={"growth": "frames", "x": [12, 102], "seconds": [1.0, 1.1], "isa": "avx512bf16", "threads": 2},
        window={"growth": "window", "x": 12, "isa": "avx512bf16", "threads": 2},
    )
    run.write(tmp_path / "run.json")
    text = report(Results.read(tmp_path / "run.json"), tmp_path)
    sections = text.split("\n## ")[1:]
    titles = [section.splitlines()[0] for section in sections]
    assert titles == [
        "Targets", "`frame_attention`", "`kv_write`", "Roofline", "Where a chunk's time goes",
        "How the cost grows with latent frames generated", "How the cost grows with pages in the window", "Inner loops",
    ]  # fmt: skip
    for section in sections:
        assert re.search(r"Made by `(make|python -m) [a-z. -]+`\.", section), section
    assert "avx512bf16, 1.3B: 0.90 (0.75-1.00) | met |" in text and "0.60 (0.50-0.70) | met |" in text
    assert "not measured in this run" in text and "75.0%" in text
    for picture in re.findall(r"\]\((.*?\.png)\)", text):
        assert (tmp_path / picture).stat().st_size > 1000
    assert "data" not in json.loads((tmp_path / "run.json").read_text())["benchmarks"][0]["stats"]


def test_runs_of_one_machine_are_reported_as_one(tmp_path):
    results(ROW).write(tmp_path / "best.json")
    slow = results(replace(ROW, isa="avx2", name="slow"))
    slow.data["lolrt"] |= {"command": "make slow", "kernels": ["avx2"], "codegen": []}
    slow.write(tmp_path / "slow.json")
    both = Results.read(tmp_path / "best.json", tmp_path / "slow.json")
    assert [(row.name, row.isa) for row in both.rows] == [(ROW.name, "avx512bf16"), ("slow", "avx2")]
    assert both.codegen == results().codegen
    assert both.command == "make bench` and `make slow" and both.machine["kernels"] == "avx512bf16 | avx2"
    slow.data["machine_info"]["lolrt"]["cpu"] = "another CPU"
    slow.write(tmp_path / "slow.json")
    with pytest.raises(Error, match="2 machines"):
        Results.read(tmp_path / "best.json", tmp_path / "slow.json")


@pytest.mark.whole
def test_the_command_prints_a_table():
    text = output_of(sys.executable, "-m", "lolrt", "bench", "--quick", "--only", "modulated_norm/1.3B")
    assert re.search(r"^cpu  .*cores$", text, re.M) and re.search(r"^versions .*torch", text, re.M)
    header, row = text.rstrip().splitlines()[-2:]
    assert header.split()[:4] == ["case", "dtype", "isa", "threads"]
    assert re.match(rf"modulated_norm/1.3B +bfloat16 +\w+ +{cores()} +\d+ +[\d.]+ \w+ +\d+% +[\d.]+ GB/s +\d+% +torch \d+\.\d\d \(", row), (
        row
    )


def test_the_command_names_the_cases_there_are(capsys):
    assert main(["bench", "--quick", "--only", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "'nothing'" in error and "frame_attention/tiny" in error


@pytest.mark.whole
@pytest.mark.parametrize("kv", ["full", "int8"])
def test_a_full_size_model_is_timed_in_a_whole_chunk(tmp_path, kv):
    lines = full_size.measure("tiny", full_size.parser().parse_args(["--kv", kv]), tmp_path / "video.mp4")
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    stages = {name.strip(): cells for name, *cells in rows[2:]}
    assert {"attention", "linear", "VAE", "writer"} < stages.keys()
    shares = [float(cells[1].strip().rstrip("%")) for name, cells in stages.items() if name != "all"]
    assert sum(shares) == pytest.approx(100, abs=len(shares))


def test_a_section_takes_the_place_of_its_old_one():
    """The rest of the document does not change, so that runs of different days can write parts of one document."""
    document = "# B\n\nhead\n\n## A\n\nx\n\n## C\n\ny\n"
    section = Section("Serving", "What it is.", "| 1 |", "python -m it")
    added = with_section(document, section)
    assert added == document + "\n## Serving\n\nWhat it is. Made by `python -m it`.\n\n| 1 |\n"
    assert with_section(added, section) == added
    changed = with_section(added, Section("A", "Other.", "z", "that"))
    assert changed == added.replace("## A\n\nx\n", "## A\n\nOther. Made by `that`.\n\nz\n")
    assert parts(changed)["C"] == "## C\n\ny\n\n"
