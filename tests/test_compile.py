"""A whole pass of the DiT compiled by torch: one graph, and the bits of the pass as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lolrt
from lolrt.models.pass_inputs import PassInputs


def ordinary(value: Any) -> Any:
    """Copies of tensors that were made in inference mode: torch compiles no views of those."""
    if isinstance(value, Tensor):
        return value.clone()
    return [x.clone() for x in value] if isinstance(value, Sequence) and value and isinstance(value[0], Tensor) else value


def bits(x: Tensor) -> Tensor:
    """What is in memory: a pool's pages that were never written may hold anything, also what is not equal to itself."""
    return x.view(torch.uint8)


@pytest.fixture
def inputs(tiny: lolrt.Pipeline, one_thread: None) -> PassInputs:
    """A pass in the second chunk of a stream."""
    stream = tiny.latent_stream("a red balloon over the hills")
    next(stream)
    made = stream.session.pending()
    return replace(made, **{field.name: ordinary(getattr(made, field.name)) for field in fields(made)})


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("backend", [pytest.param("aot_eager", marks=pytest.mark.whole), pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_pass_is_one_graph_with_the_same_bits(backend: str, probe: bool, tiny: lolrt.Pipeline, inputs: PassInputs) -> None:
    config, frames = tiny.dit.config, inputs.frames
    mass = torch.zeros(config.num_layers, 1, inputs.page_table.shape[1], frames, config.num_heads) if probe else None
    plain, given = (replace(inputs, layer_pages=[x.clone() for x in inputs.layer_pages], mass=ordinary(mass)) for _ in range(2))
    expected = tiny.dit(plain)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(tiny.dit, fullgraph=True, backend=backend)(given), expected)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(plain.layer_pages, given.layer_pages, strict=True)), (
        "pages are written in place"
    )
    assert mass is None or (torch.equal(plain.mass, given.mass) and given.mass.sum() > 0)  # type: ignore[union-attr, arg-type]


class Pass(torch.nn.Module):
    """A pass as a function of its tensors, which is what torch.export takes."""

    def __init__(self, dit: lolrt.CausalDiT, like: PassInputs) -> None:
        super().__init__()
        self.dit, self.like = dit, like
        self.names = [field.name for field in fields(like) if isinstance(getattr(like, field.name), Tensor)]

    def forward(self, tensors: list[Tensor], layer_pages: list[Tensor]) -> Tensor:
        return self.dit(replace(self.like, layer_pages=layer_pages, **dict(zip(self.names, tensors, strict=True))))


@pytest.mark.slow
def test_an_exported_pass_is_packaged_with_the_same_bits(tiny: lolrt.Pipeline, inputs: PassInputs, tmp_path: Path) -> None:
    module = Pass(tiny.dit, inputs)
    plain, given = ([ordinary([getattr(inputs, name) for name in module.names]), ordinary(inputs.layer_pages)] for _ in range(2))
    with torch.no_grad():
        exported = torch.export.export(module, tuple(given), strict=False)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "dit.pt2"))
    package = torch._inductor.aoti_load_package(path)
    assert torch.equal(package(*given), module(*plain))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(plain[1], given[1], strict=True)), "pages are written in place"
