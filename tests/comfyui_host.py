"""Runs graphs in ComfyUI, by its own loader and executor and without its server: python comfyui_host.py COMFYUI NODES OUTPUT < GRAPHS.

GRAPHS: a line of JSON for each run: the graph, and after how many reports of progress the user interrupts it, or null. The frames of run k,
which a node `Keep` gets, go to OUTPUT/k.pt. Prints a line of JSON for each run: what went wrong, the reports of progress, and the sizes of
the previews.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

comfyui, package, output = map(Path, sys.argv[1:])
sys.path.insert(0, str(comfyui))
sys.argv = ["main.py", "--cpu", "--output-directory", str(output)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.utils  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402


class Keep:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"frames": ("IMAGE",), "run": ("INT", {})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, "tests"

    def keep(self, frames: torch.Tensor, run: int) -> tuple[()]:
        torch.save(frames, output / f"{run}.pt")
        return ()


class Server:
    """What the executor needs of one."""

    client_id, last_node_id = "test", None

    def send_sync(self, *event: Any) -> None:
        pass


class Reports:
    """Takes the reports of progress in a run, and interrupts it as a user would."""

    def __init__(self, stop_after: int | None) -> None:
        self.stop_after = stop_after
        self.seen: list[tuple[int, int]] = []
        self.previews: list[tuple[int, int]] = []

    def __call__(self, value: int, total: int, preview: Any, **node: Any) -> None:
        self.seen.append((value, total))
        if preview is not None:
            self.previews.append(preview[1].size)
        if len(self.seen) == self.stop_after:
            nodes.interrupt_processing()


async def main() -> None:
    assert await nodes.load_custom_node(str(package)), "ComfyUI did not load the nodes"
    nodes.NODE_CLASS_MAPPINGS["Keep"] = Keep
    executor = execution.PromptExecutor(Server(), cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
    for run, line in enumerate(sys.stdin):
        graph, stop_after = json.loads(line)
        reports = Reports(stop_after)
        comfy.utils.set_progress_bar_global_hook(reports)
        valid, error, outputs, node_errors = await execution.validate_prompt(str(run), graph, None)
        problem = None if valid else [error, node_errors]
        if valid:
            await executor.execute_async(graph, str(run), {}, outputs)
            failed = [told for told in executor.status_messages if told[0] in ("execution_error", "execution_interrupted")]
            problem = None if executor.success else [failed[0][0], failed[0][1].get("exception_message")]
        print(json.dumps({"problem": problem, "seen": reports.seen, "previews": reports.previews}), file=sys.__stdout__, flush=True)


asyncio.run(main())
