"""The text model of the laboratory: streamed through the kernels it gives what torch computes, and the sweep changes only positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lolrt
from lolrt.cli import main
from lolrt.lab import text
from lolrt.lab.text_model import BOS, TextConfig, TextModel, TextStream, corpus, rows_of, train

pytestmark = pytest.mark.whole


def model_of(heads: int = 2, seed: int = 0) -> TextModel:
    torch.manual_seed(seed)
    return TextModel(TextConfig(dim=16 * heads, heads=heads, layers=2, ffn_dim=24)).requires_grad_(False)


ROW = torch.randint(128, (40,), generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 5), st.integers(1, 12), st.integers(2, 40))
def test_a_stream_is_torchs_attention_with_explicit_rope(heads: int, sinks: int, recent: int, length: int) -> None:
    """Sinks and a recent window as a mask, absolute positions as angles on q and k, in torch's own attention."""
    model = model_of(heads)
    stream = TextStream(model, lolrt.Rope(sigma=0), lolrt.Window(sinks, recent, 1))
    streamed = torch.stack([stream.add(token)[0] for token in ROW[:length].tolist()])
    i, j = torch.arange(length)[:, None], torch.arange(length)
    visible = (j <= i) & ((j < sinks) | (j > i - recent))
    expected = model(ROW[None, :length], visible=visible)[0]
    torch.testing.assert_close(streamed, expected, atol=2e-5, rtol=2e-5)


def test_without_a_window_it_is_the_model_that_was_trained():
    model = model_of()
    stream = TextStream(model, lolrt.Rope(sigma=0), lolrt.Window(0, 40, 1))
    streamed = torch.stack([stream.add(token)[0] for token in ROW.tolist()])
    torch.testing.assert_close(streamed, model(ROW[None])[0], atol=2e-5, rtol=2e-5)


def test_the_future_is_not_seen_and_positions_matter():
    model, other = model_of(), ROW.clone()
    other[30:] = 0
    assert torch.equal(model(ROW[None])[0, :30], model(other[None])[0, :30])
    assert not torch.allclose(model(ROW[None], positions=3 * torch.arange(40)), model(ROW[None]), atol=1e-3)


@pytest.mark.parametrize("moved_by", [0, 400])
def test_a_sweep_is_the_model_with_other_numbers(moved_by):
    """The moved token, by an explicit oracle: positions of all but the sinks go up, keys of the past are what they were."""
    model = model_of()
    row = ROW.repeat(3)
    start = text.HELD + moved_by
    mass = text.sweep(model, "sigma=0", row, [start])[0]
    probabilities = oracle_mass(model, row[: text.HELD + 1], moved_by)
    np.testing.assert_allclose(mass, probabilities, atol=2e-5)


def oracle_mass(model: TextModel, tokens: torch.Tensor, moved_by: int, sinks: int = 4, recent: int = 60) -> np.ndarray:
    """Mass on the sinks [layers, heads] of the last token in float64, keys and values of the past from an unmoved run."""
    config, length = model.config, len(tokens)
    past = {}

    def run(number: torch.Tensor, keep: bool) -> list[torch.Tensor]:
        x, found = model.embed_tokens(tokens), []
        i, j = torch.arange(length)[:, None], torch.arange(length)
        visible = (j <= i) & ((j < sinks) | (j > i - recent))
        for n, layer in enumerate(model.layers):
            q, k, v = layer.qkv(x, config.heads)
            if keep:
                past[n] = k, v
            else:  # only the last token is new
                k, v = (torch.cat([old[:-1], new[-1:]]) for old, new in zip(past[n], (k, v), strict=True))
            scores = torch.einsum("qhd,khd->hqk", turned(q, number), turned(k, number)) / config.head_dim**0.5
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            found.append(weights[:, -1, :sinks].sum(-1))
            x = layer.rest(x, torch.einsum("hqk,khd->qhd", weights, v.double()).float())
        return found

    def turned(x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        angle = number[:, None].double() * config.theta ** (-torch.arange(0, config.head_dim, 2).double() / config.head_dim)
        z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.view_as_real(z).flatten(-2)

    number = torch.arange(length)
    run(number, keep=True)
    moved = torch.where(number < sinks, number, number + moved_by)
    return torch.stack(run(moved, keep=False)).numpy()


def test_positions_in_the_window_make_the_sweep_flat():
    masses = text.sweep(model_of(), "sigma=0,positions=window", ROW.repeat(3), [96, 200, 10**6])
    assert (masses[0] == masses[1]).all() and (masses[0] == masses[2]).all()
    assert text.agreement(np.full(80, 0.3), np.arange(80.0)) == 0


def test_losses_are_those_of_the_stream():
    model = model_of()
    row = torch.cat([torch.tensor([BOS]), ROW])
    nats = text.losses(model, "sigma=0", row)
    expected = torch.nn.functional.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none")
    np.testing.assert_allclose(nats, expected, atol=1e-4)


def test_measures_of_known_series():
    offsets = np.arange(300.0)
    wave = np.cos(offsets / 5)
    assert text.agreement(0.2 + 0.01 * offsets + wave, wave) > 0.9, "a slow drift does not matter"
    assert text.agreement(-wave, wave) < -0.99
    assert abs(text.agreement(np.random.default_rng(0).standard_normal(300), wave)) < 0.2
    mass = np.full((100, 2, 3), 0.1)
    mass[42, 0] = 0.3
    assert text.synchrony(mass, 40) == 0.5 and text.synchrony(mass, 60) == 0
    assert text.rise(mass.mean((1, 2)), 40) == pytest.approx(2) and text.rise(mass.mean((1, 2)), 60) == pytest.approx(1)


def test_rows_begin_with_bos_and_hold_the_text():
    tokens, held_out = corpus()
    assert len(held_out) > 20_000 and int(tokens.max()) < 128
    rows = rows_of(held_out, torch.tensor([0, 7]), 5)
    assert rows[:, 0].tolist() == [BOS, BOS] and torch.equal(rows[1, 1:], held_out[7:12])


def test_training_learns():
    config = TextConfig(dim=32, heads=2, layers=1, ffn_dim=48, train_tokens=32)
    rows = rows_of(corpus()[1], torch.arange(0, 6400, 200), 32)
    letters = torch.bincount(rows[:, 1:].flatten(), minlength=BOS + 1) / rows[:, 1:].numel()
    by_frequency = torch.special.entr(letters).sum()  # the loss of a model that knows only the frequencies of these letters
    trained = train(config, 0, 120, batch=16, rate=1e-2)
    assert torch.nn.functional.cross_entropy(trained(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()) < by_frequency - 0.1


def three_seconds(work: Callable[[], object]) -> float:
    work()
    return 3.0


def test_the_command_writes_a_table_and_goes_on_with_its_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lolrt.lab.cost.cpu_seconds", three_seconds)
    monkeypatch.setattr(text, "TextConfig", lambda: TextConfig(dim=16, heads=2, layers=1, ffn_dim=24, train_tokens=100))
    command = ["lab", "text", "--steps", "1", "--texts", "2", "--tokens", "180", "--draws", "1", "-o", str(tmp_path)]
    assert main(command) == 0
    # 3 / 4 s for a step of training, and 4 policies * 2 texts * 2 * 180 tokens * 3 / 32 s: 270.75 s
    assert capsys.readouterr().err.startswith(
        "1 of 1 models are to be trained, 1 steps each; then 2 texts are measured with each: about 4.5 CPU"
    )
    table = (tmp_path / "text.md").read_text()
    assert all(f"| {cell} |" in table for cell in text.cells(1, 4, 4)) and "Agreement: " in table
    assert (tmp_path / "sweep-0.png").stat().st_size > 5000
    monkeypatch.setattr(text, "train", lambda *_: pytest.fail("it has been trained"))
    assert main(command) == 0 and (tmp_path / "text.md").read_text() == table
    assert main([*command, "--tokens", "120"]) == 2
