"""Pages that are not worth reading: which are left out, when, and what that can change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import fp64
from sessions import TWO_PASSES, config, smallest_dit, smallest_engine, smallest_text
from test_attention import Attention

import lolrt
from lolrt.engine.page_skip import unread
from lolrt.models.pass_inputs import PassInputs
from lolrt.session.session import Session


@pytest.mark.usefixtures("isa")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    tokens=st.integers(1, 40),
    pages=st.integers(2, 9),
    frames=st.integers(1, 3),
    sharpness=st.floats(0.1, 4.0),
    skip=st.sampled_from([0.003, 0.03, 0.3]),
)
def test_what_is_left_out_changes_no_more_than_its_share_of_the_attention(dtype, tokens, pages, frames, sharpness, skip) -> None:
    """The kernel without the pages, against all pages in float64."""
    case = Attention(dtype, frames, tokens, 2, 32, pages, tokens, 8, scale=sharpness * 32**-0.5)
    whole, _ = case.run(probe=True)
    every, share = case.oracle()
    rounding = np.abs(fp64(whole) - every).max()
    case.bias = unread(case.run(probe=True)[1][None], pages - frames, skip)[0] if pages > frames else None
    if case.bias is None:
        return
    out, mass = case.run(probe=True)
    left = np.isneginf(fp64(case.bias))  # [pages, heads]
    assert not left[pages - frames :].any()
    assert (fp64(mass)[left.nonzero()[0], :, left.nonzero()[1]] == 0).all()
    lost = (share * left[:, None]).sum(0)  # [frames, heads]
    assert (lost <= left.sum(0) * (skip + (1e-5 if dtype == torch.float32 else 2e-2))).all()
    assert ((share[: pages - frames] >= skip / 2).any(1) | left[: pages - frames]).all(), "what is hardly read is left out"
    values = fp64(case.v).reshape(-1, 2, 32)
    bound = lost[..., None] * (values.max(0) - values.min(0))
    assert (np.abs(fp64(out) - every).mean(1) <= bound + 2 * rounding + 1e-6).all()


def passes_of_a_chunk(session: Session) -> list[tuple[PassInputs, torch.Tensor | None]]:
    """The inputs of each pass of the next chunk, and the mass that the pass measured."""
    made = []
    while not made or not session.between_chunks:
        inputs = session.pending()
        flow = session.engine.dit(inputs)
        made.append((inputs, None if inputs.mass is None else inputs.mass.clone()))
        session.passed(flow)
    return made


def skipping(window: lolrt.Window, probe: bool = False) -> Session:
    return Session(smallest_engine(smallest_dit(), pages=16, sessions=1), smallest_text(1), config(window, TWO_PASSES, probe=probe))


def test_heads_leave_out_what_their_first_pass_hardly_read():
    """In the passes that follow, the cache pass included, and only pages of earlier frames."""
    skip, seen = 0.17, set()
    session = skipping(lolrt.Window(1, 4, 2, skip=skip))
    for chunk in range(4):
        first, *others = passes_of_a_chunk(session)
        inputs, mass = first
        assert inputs.bias is None and mass is not None and len(others) == 2
        least_read = mass[:, 0].amax(2) < skip  # [layers, pages, heads]
        least_read[:, -2:] = False
        for inputs, mass in others:
            assert mass is None and torch.equal(inputs.bias[:, 0] == -math.inf, least_read)
            assert (inputs.bias[:, 0][~least_read] == 0).all()
        seen |= set(least_read[:, :-2].flatten().tolist()) if chunk else set()
    assert seen == {True, False}, "some are left out and some are not"


def test_the_probe_says_what_was_left_out():
    session = skipping(lolrt.Window(1, 4, 2, skip=0.17), probe=True)
    for _ in range(3):
        (_, first), (inputs, last), _ = passes_of_a_chunk(session)
        assert (first > 0).all() and torch.equal((last == 0).all(3), inputs.bias == -math.inf)


def test_a_gate_stays_shut_for_the_heads_that_go_on_reading():
    """Its bias and the pages left out add up."""
    session = skipping(lolrt.Window(2, 4, 2, gate=lolrt.SinkGate(-0.5), skip=0.15))
    for _ in range(2):
        passes_of_a_chunk(session)
    (first, mass), *others = passes_of_a_chunk(session)
    assert (first.bias[:, :, :2] == -0.5).all()
    for inputs, _ in others:
        out = mass[:, 0].amax(2)[:, :4] < 0.15
        assert torch.equal(inputs.bias[:, 0, :4] == -math.inf, out) and out.any() and not out[:, :2].all()
        assert (inputs.bias[:, 0, :2][~out[:, :2]] == -0.5).all() and (inputs.bias[:, 0, 2:4][~out[:, 2:]] == 0).all()


def test_given_frames_read_everything():
    """They have only their cache pass, which none has gone before."""
    engine = smallest_engine(smallest_dit(), pages=16, sessions=1)
    start = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    session = Session(engine, smallest_text(1), config(lolrt.Window(1, 4, 2, skip=0.9)), start=start)
    for _ in range(2):
        ((inputs, mass),) = passes_of_a_chunk(session)
        assert inputs.bias is None and mass is None


@pytest.mark.parametrize("wrong", [-0.1, 1.0, math.nan, "0.1"])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(lolrt.Error, match=r"skip is .*expected a"):
        lolrt.Window(skip=wrong)
