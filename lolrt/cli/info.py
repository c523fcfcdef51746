"""`lolrt info`: prints versions, kernels and models, or the memory that a stream of a model needs."""

from __future__ import annotations

import argparse
import os

from lolrt import __version__
from lolrt.cli.options import (
    MODEL_HELP,
    Commands,
    HelpWithDefaults,
    add_fields,
    add_kv,
    add_linear,
    add_vae,
    add_weights,
    field_values,
    frame_size,
    kv_dtype,
    tell_warnings,
)
from lolrt.errors import Error


def add_command(commands: Commands) -> None:
    info = commands.add_parser(
        "info",
        help="versions, CPU features, kernels, models; with --model, the memory that a stream of it takes",
        formatter_class=HelpWithDefaults,
    )
    info.set_defaults(run=run)
    info.add_argument("--model", help=MODEL_HELP)
    info.add_argument("--size", metavar="HxW", type=frame_size, help="of the video, such as 480x832; by default the model's own")
    add_fields(info, "Window")
    info.set_defaults(chunk_frames=None)  # the model's own
    info.add_argument("--dtype", choices=["bfloat16", "float32"], help="of weights and activations; by default what the kernels prefer")
    info.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the model would run; cuda need not be there")
    add_weights(info)
    add_vae(info)
    add_kv(info)
    add_linear(info)


def run(arguments: argparse.Namespace) -> None:
    if arguments.model is not None:
        print_memory(arguments)
        return
    import platform

    import av
    import torch

    from lolrt import _core
    from lolrt.bench.machine import cpu_features
    from lolrt.pipeline import embedded_models

    print(f"lolrt      {__version__} (core {_core.version()}, ABI {_core.abi_version()})")
    print(f"python     {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}")
    print(f"cpu        {platform.machine()}, {os.cpu_count()} cores; {' '.join(cpu_features()) or 'features unknown'}")
    print(f"kernels    {_core.isa()} (this CPU can run: {', '.join(_core.isas())}; LOLRT_ISA chooses), {_core.threads()} threads")
    print(f"int8       {int8_layers()}")
    print(f"cuda       {cuda_device()}")
    print(f"models     {', '.join(embedded_models()) or 'none'}")


def int8_layers() -> str:
    """Whether this CPU computes linear layers in 8 bits, or the reason why not."""
    from lolrt.ops import CPU
    from lolrt.ops.int8 import check_int8

    try:
        check_int8(CPU)
    except Error as error:
        return str(error)
    return "linear layers with --linear int8, off by default: faster and less exact"


def cuda_device() -> str:
    """The name of the GPU that models would run on, or the reason why there is none."""
    import torch

    from lolrt.ops.device import usable

    try:
        return f"{(found := usable('cuda'))}, {torch.cuda.get_device_name(found)}"
    except Error as error:
        return str(error)


def print_memory(arguments: argparse.Namespace) -> None:
    """Prints the memory that a stream of a model will allocate."""
    from dataclasses import replace

    import torch

    from lolrt.checkpoint.inspect import size
    from lolrt.memory_plan import plan_model
    from lolrt.pipeline import files_of, preferred_dtype, window_of

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else preferred_dtype(arguments.device)
    if arguments.device == "cuda" and dtype != torch.bfloat16:
        raise Error("on CUDA models run in bfloat16: ask for that, or for the memory on the CPU")
    if arguments.device == "cuda" and arguments.linear == "int8":
        raise Error("--linear int8 is for the CPU: leave it out, or ask for the memory on the CPU")
    files = files_of(arguments.model, {"dit"}, arguments.weights)
    tell_warnings(files)
    window = replace(window_of(files.settings, files.source), **field_values(arguments, "Window"))
    plan, (height, width) = plan_model(
        files, arguments.size, dtype, window, vae=arguments.vae, vae_tile=arguments.vae_tile, device=arguments.device,
        kv_dtype=kv_dtype(arguments), linear=arguments.linear,
    )  # fmt: skip
    layers = ", linear layers in int8" if arguments.linear == "int8" else ""
    kind = f"{height} x {width} pixels, {str(dtype).removeprefix('torch.')}{layers}, window {window.sink_frames} + {window.recent_frames}"
    print(f"{arguments.model}: a stream of {kind}")
    tables = ("weights", plan.weights), ("stream", plan.stream), ("at most, in turn", plan.transient), ("before, if at all", plan.before)
    for title, rows in tables:
        for name, count in rows.items():
            if count:
                print(f"{title:19}{name:34}{size(count):>12}")
    beside = "what CUDA and its libraries take; predicted, not measured" if arguments.device == "cuda" else "the process itself"
    print(f"{'in all, at most':53}{size(plan.total):>12}, beside {beside}")
