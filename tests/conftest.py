from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from lolrt.openmp import WAIT

os.environ.update(WAIT)  # must be set before torch is imported, as on the command line

import hypothesis
import layouts
import pytest
import torch
from commands import output_of
from safetensors.torch import load_file, save_file
from tiers import pytest_collection_modifyitems as pytest_collection_modifyitems

import lolrt
from lolrt import _core
from lolrt.checkpoint.synth import synth

# A process in the background of a shell ignores Ctrl-C, and one under nohup ignores hangups. Runs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# No test asserts a time.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel set that this CPU can run, in turn. Afterwards the old set and the number of threads are restored."""
    before, threads = _core.isa(), _core.threads()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)
    _core.set_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, because torch's products may depend on the number of threads, and this is not what the tests compare."""
    threads = torch.get_num_threads()
    lolrt.set_threads(1)
    yield
    lolrt.set_threads(threads)


@pytest.fixture(scope="session")
def installed_with_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where lolrt is installed with its libraries on libtorch; built for this."""
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("prefix")
    options = ["-DLOLRT_TORCH=ON", "-DLOLRT_CUDA=OFF", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    output_of("cmake", "-S", Path(__file__).parent.parent, "-B", build, *options)
    output_of("cmake", "--build", build, "--parallel", "2")
    output_of("cmake", "--install", build, "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def data() -> Path:
    """Inputs and outputs of the public code on random weights (tests/data/README.md)."""
    return DATA


@pytest.fixture(scope="session")
def small_dit() -> lolrt.CausalDiT:
    """A DiT of 2 layers and 2 heads of 128, in float32."""
    return lolrt.load_dit(DATA / "self_forcing_dmd_small.pt", torch.float32)


@pytest.fixture(scope="session")
def rollout_inputs() -> dict[str, torch.Tensor]:
    return load_file(DATA / "rollout_inputs.safetensors")


@pytest.fixture(scope="session")
def quick_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny in two steps and at three times its frame rate, for tests that wait until video is played."""
    folder = tmp_path_factory.mktemp("models") / "quick"
    shutil.copytree(Path(lolrt.__file__).parent / "_embedded" / "tiny", folder)
    settings = json.loads((folder / "model.json").read_text())
    steps = {"timesteps": [1000, 500], "first_timesteps": [1000, 500]}
    settings |= {"name": "quick", "fps": 48, "sampler": settings["sampler"] | steps}
    (folder / "model.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def quick(quick_model: Path) -> lolrt.Pipeline:
    return lolrt.load(quick_model)


@pytest.fixture(scope="session")
def tiny() -> lolrt.Pipeline:
    return lolrt.load("tiny")


@pytest.fixture(scope="session")
def styles(tmp_path_factory: pytest.TempPathFactory, tiny: lolrt.Pipeline) -> dict[str, Path]:
    """Two LoRAs that change the pictures of `tiny`."""
    dim, found = tiny.dit.config.dim, {}
    for seed, name in enumerate(("oil", "ink")):
        generator = torch.Generator().manual_seed(seed)
        found[name] = tmp_path_factory.mktemp("styles") / f"{name}.safetensors"
        parts = {f"lora_{part}": torch.randn(shape, generator=generator) * 0.2 for part, shape in (("A", (4, dim)), ("B", (dim, 4)))}
        save_file({f"diffusion_model.blocks.2.self_attn.o.{part}.weight": x for part, x in parts.items()}, found[name])
    return found


@pytest.fixture
def self_forcing(tmp_path) -> Path:
    """A folder with a Self-Forcing checkpoint in float32, a VAE and a text encoder in bf16, and a tokenizer."""
    folder = tmp_path / "downloads"
    layouts.DIT_LAYOUTS["Self-Forcing, FSDP"](folder, layouts.dit_tensors())
    torch.save({name: tensor.bfloat16() for name, tensor in layouts.vae_tensors().items()}, folder / "Wan2.1_VAE.pth")
    torch.save({name: tensor.bfloat16() for name, tensor in layouts.text_encoder_tensors().items()}, folder / "t5.pth")
    torch.save(layouts.taehv_tensors(), folder / "taew2_1.pth")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """A folder with a whole model of random weights."""
    return synth(tmp_path_factory.mktemp("synth") / "small", "small")
