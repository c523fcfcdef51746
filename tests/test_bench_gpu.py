"""The measurement on a GPU, as far as it can be tested without one: with made-up clocks, on the CPU and on the meta device."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench.gpu import __main__ as bench_gpu
from bench.gpu.cases import LIBRARIES, WHOLE, attention_peers, chunk, gpu_cases, op_cases
from bench.models import Model, tiny
from bench.results import Results
from lolrt.bench.case import TINY
from lolrt.bench.cases import CASES
from lolrt.bench.measure import Effort

CPU = torch.device("cpu")


def test_every_op_of_cuda_is_measured_at_full_size():
    assert {case.op for case in op_cases()} == {case.op for case in CASES} - {"channel_norm", "conv3d"}
    for op in ("frame_attention", "kv_write", "normalize_queries", "modulated_norm", "gelu", "sampler_step"):
        assert any(case.op == op and case.shape == "1.3B" for case in gpu_cases())
    assert any(case.name == "frame_attention/1.3B, 4 sessions" for case in gpu_cases())
    assert {"chunk", "vae_decode"} < {case.op for case in gpu_cases()}


@pytest.mark.whole
@pytest.mark.parametrize("case", op_cases(), ids=lambda case: case.name)
def test_cases_keep_to_torchs_default_device(case):
    """Runs on the meta device, whose tensors mix with none of the CPU's and where nothing takes time."""
    with torch.device("meta"), torch.inference_mode():
        trial = case.make(False)
        for run in (trial.ours, *trial.peers.values()):
            result = run()
            assert result is None or result.is_meta


@pytest.mark.whole
def test_a_chunk_keeps_to_torchs_default_device():
    with torch.device("meta"), torch.inference_mode():
        assert chunk(Model("tiny", tiny().config, tiny().latent)).make(False).ours().is_meta
    # 141 TFLOP a chunk of the 1.3B model: 5 passes of the published 16.1 + 11.7 + 0.44.
    assert chunk(WHOLE).flops == pytest.approx(5 * 28.2e12, rel=0.01)


def test_rows_are_written_as_the_cpus_are(tmp_path, monkeypatch):
    seconds = iter([2.0, 1.0] * 1000)

    def timer(run):
        run()
        return next(seconds)

    case = replace(next(case for case in op_cases() if case.name == "modulated_norm/tiny"), bytes=3e6, bound="bytes")
    effort = Effort(seconds=15.0, least=1, most=9)
    rows = list(bench_gpu.measure([case], CPU, timer, bench_gpu.Peaks(timer), effort, "sm_90"))
    assert (rows[0].isa, rows[0].threads, rows[0].n) == ("sm_90", 0, 5)  # a round takes 2 s + 1 s
    assert rows[0].peak == 3e6 / 1.0 and rows[0].peak_name == "copy of the same bytes"
    path = tmp_path / "gpu.json"
    bench_gpu.results(rows, {"gpu": "a GPU", "kernels": "sm_90"}, "python -m bench.gpu").write(path)
    read = Results.read(path)
    assert [replace(row, seconds=tuple(row.seconds), ratios={}) for row in read.rows] == [replace(rows[0], ratios={})]
    assert read.machine == {"gpu": "a GPU", "kernels": "sm_90"} and read.command == "python -m bench.gpu"


def test_the_peak_of_products_counts_their_flops():
    peaks = bench_gpu.Peaks(lambda run: 0.5, gemm_shape=(4, 5, 6))
    assert peaks.before(chunk(WHOLE)).rate == 2 * 4 * 5 * 6 / 0.5


def test_the_timer_reads_milliseconds_and_overwrites_the_cache_first(monkeypatch):
    order: list[str] = []
    event = SimpleNamespace(record=lambda: order.append("event"), synchronize=lambda: order.append("wait"), elapsed_time=lambda _: 250.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    timer = bench_gpu.ColdTimer(torch.device("meta"))
    monkeypatch.setattr(timer, "_scratch", SimpleNamespace(zero_=lambda: order.append("scratch")))
    assert timer(lambda: order.append("run")) == 0.25
    assert order == ["scratch", "event", "run", "event", "wait"]


def test_libraries_that_are_there_and_run_are_peers(monkeypatch, capsys):
    good, bad = ModuleType("flash_attn"), ModuleType("flashinfer")
    good.flash_attn_func = lambda q, k, v: calls.append(q.shape)

    def refuse(*_, **__):
        raise RuntimeError("not for sm_75")

    bad.single_prefill_with_kv_cache = refuse
    calls: list[object] = []
    for module in (good, bad):
        module.__spec__ = SimpleNamespace()
        monkeypatch.setitem(sys.modules, module.__name__, module)
    peers = attention_peers(TINY)
    assert list(peers) == ["SDPA alone", "flash-attn alone"] and len(LIBRARIES) == 3
    peers["flash-attn alone"]()
    assert calls == [(1, 72, 4, 64)] * 2
    assert "FlashInfer does not run here: not for sm_75" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert bench_gpu.main(["--only", "gelu"]) == 2
    assert "device is 'cuda', but torch" in capsys.readouterr().err
    assert bench_gpu.main(["--only", "nothing"]) == 2
    assert "gelu/1.3B" in capsys.readouterr().err
