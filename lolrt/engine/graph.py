"""Passes of the DiT as CUDA graphs: captured once, replayed from then on, so that a pass costs the host a few calls.

A graph knows addresses and nothing else: which kernels run, on which memory, with which numbers. So whatever changes from pass to pass
lies in memory that is written before the replay. Page tables, rotation tables, keys and values of the text lie in one place anyway
(`lolrt.engine.kv_window`, `lolrt.session.session`); sample, modulation and bias are copied to where the graph reads them, mass and mean
query from where it writes them.
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
    """A DiT on CUDA, to be called as it is itself, whose passes are replayed.

    Passes of the same shapes, which find all that is not copied in the same place, are one graph. The first of them runs as it is, and then
    waits for the device while it is captured; every later one is a replay, which allocates nothing and waits for nothing. Graphs share
    their memory: the flow that a call returns is valid until the next call.
    """

    def __init__(self, dit: CausalDiT) -> None:
        self._dit = dit
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[object, tuple[Replay, Tensor]] = {}
        self._copies: dict[object, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, inputs: PassInputs) -> Tensor:
        """As `CausalDiT.forward`."""
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
            velocity = work()  # libraries set themselves up in their first call, which must not be captured
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
        """Where graphs have what is copied."""
        if (name, x.shape) not in self._copies:
            self._copies[name, x.shape] = torch.empty_like(x)
        return self._copies[name, x.shape]


def captured(work: Callable[[], Tensor], memory: Any, device: torch.device) -> tuple[Replay, Tensor]:
    """What `work` queues, not run: a function that queues it on the current stream, and the tensor that it returns, whose values each
    replay makes anew. memory: of all that is allocated meanwhile, as of `torch.cuda.graph_pool_handle`."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with what they do, such as loading another model.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=memory, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
    ):
        result = work()
    return graph.replay, result
