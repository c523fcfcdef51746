"""Runs passes of the DiT as CUDA graphs. A graph is captured once and replayed from then on, so a pass costs the host only a few calls.

A graph fixes which kernels run, with which arguments, and at which addresses. So everything that changes from pass to pass must be in
memory that is written before the replay. Page tables, rotation tables, and keys and values of the text are always at the same addresses
(`lolrt.engine.kv_window`, `lolrt.session.session`). Sample, modulation and bias are copied to the graph's inputs; mass and mean query are
copied from its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lolrt.models.dit import CausalDiT
from lolrt.models.pass_inputs import PassInputs

Replay = Callable[[], None]


class GraphedPasses:
    """A callable like the DiT itself, on CUDA, that replays its passes.

    Passes with the same shapes, and the same addresses of all tensors that are not copied, share one graph. The first such pass runs
    without a graph, and then waits for the device while the graph is captured. Every later one is a replay, which allocates nothing and
    waits for nothing. The graphs share their memory: the flow that a call returns is valid until the next call.
    """

    def __init__(self, dit: CausalDiT) -> None:
        self._dit = dit
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[object, tuple[Replay, Tensor]] = {}
        self._copies: dict[object, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, inputs: PassInputs) -> Tensor:
        """Runs a pass; see `CausalDiT.forward`."""
        copied = {"sample": inputs.sample, "modulation": inputs.modulation, "bias": inputs.bias, "mass": inputs.mass}
        given = {name: x for name, x in copied.items() if x is not None}
        given |= {f"query {i}": query for i, (_, query) in enumerate(inputs.queries)}
        own = {name: self._own(name, x) for name, x in given.items()}
        for name in ("sample", "modulation", "bias"):
            if name in own:
                own[name].copy_(given[name])
        queries = [(frames, own[f"query {i}"]) for i, (frames, _) in enumerate(inputs.queries)]
        graphed = replace(
            inputs, sample=own["sample"], modulation=own["modulation"], bias=own.get("bias"), mass=own.get("mass"), queries=queries
        )
        read_in_place = inputs.page_table, inputs.write_table, inputs.rotation, inputs.spatial_rotation, inputs.text_table
        read = (*read_in_place, inputs.text_pages, *inputs.layer_pages, *own.values())
        key = tuple((x.data_ptr(), x.shape) for x in read)

        def work() -> Tensor:
            return self._dit(graphed)

        graph = self._graphs.get(key)
        if graph is None:
            velocity = work()  # the first call initialises libraries, which must not be captured
        else:
            replay, velocity = graph
            replay()
        for name, x in given.items():
            if name == "mass" or name.startswith("query"):
                x.copy_(own[name])
        if graph is None:
            self._graphs[key] = captured(work, self._memory, inputs.sample.device)
        return velocity

    def _own(self, name: str, x: Tensor) -> Tensor:
        """The graphs' own buffer for a tensor that is copied."""
        if (name, x.shape) not in self._copies:
            self._copies[name, x.shape] = torch.empty_like(x)
        return self._copies[name, x.shape]


def captured(work: Callable[[], Tensor], memory: Any, device: torch.device) -> tuple[Replay, Tensor]:
    """Captures the work that `work` queues, without running it. Returns a function that queues it on the current stream, and the tensor
    that `work` returned, whose values each replay overwrites. memory: the pool for all allocations during the capture, a handle of
    `torch.cuda.graph_pool_handle`."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on meanwhile, for example load another model.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=memory, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
    ):
        result = work()
    return graph.replay, result
