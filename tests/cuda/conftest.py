from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import emulated
import interpreted
import pytest
import torch
from emulated_device import EmulatedCore, core_beside
from gpu import Gpu

from bench import sass


@pytest.fixture(scope="session")
def cuda_half() -> Path:
    """liblolrt_cuda.so as nvcc built it."""
    if not sass.LIBRARY.exists():
        pytest.skip("this build has no CUDA half: there was no nvcc")
    return sass.LIBRARY


@pytest.fixture(scope="session")
def disassembler() -> None:
    for name in ("cuobjdump", "nvdisasm"):
        if sass.tool(name) is None:
            pytest.skip(f"there is no {name}: pip install nvidia-cuda-{name}")


@pytest.fixture(scope="session")
def machine_code(cuda_half: Path, disassembler: None) -> list[sass.Function]:
    """The machine code of all kernels for all architectures."""
    return list(sass.functions(sass.disassemble(cuda_half)))


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> emulated.Emulated:
    return emulated.Emulated(emulated.build(tmp_path_factory.mktemp("emulated")))


@pytest.fixture(scope="session")
def core(emulated_library: emulated.Emulated) -> EmulatedCore:
    return EmulatedCore(emulated_library, core_beside(emulated_library.path))


# The tile of attention differs between architectures, and sm_90 has a separate kernel. Seeds choose between the natural order of threads,
# blocks and copies and a random one. The number of multiprocessors decides which tiles of queries are cut. If there is a GPU, the same
# tests also run on it.
@pytest.fixture(
    params=[(0, 800, 2), (7, 860, 1), (0, 900, 3), (5, 900, 5), None], ids=["sm_80", "sm_86-random", "sm_90", "sm_90-random", "gpu"]
)
def cuda(request: pytest.FixtureRequest, emulated_library: emulated.Emulated) -> Iterator[emulated.Emulated | Gpu]:
    if request.param is None:
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        yield Gpu()
        return
    emulated_library.settings(*request.param)
    yield emulated_library
    emulated_library.settings()


@pytest.fixture(scope="session")
def ptx(emulated_library: emulated.Emulated) -> interpreted.Interpreted:
    if not interpreted.has_nvcc():
        pytest.skip("there is no nvcc, whose PTX would be run")
    return interpreted.Interpreted(emulated_library.path, interpreted.compile_ptx(interpreted.UNITS))


@pytest.fixture(scope="session")
def ptx_of_small_tiles(ptx: interpreted.Interpreted) -> interpreted.Interpreted:
    """Attention for sm_86, with half the keys in a tile."""
    units = [interpreted.KERNELS / "frame_attention.cu"]
    return interpreted.Interpreted(ptx.path, interpreted.compile_ptx(units, architecture="86"), 860)


@pytest.fixture(scope="session")
def ptx_of_sm90(ptx: interpreted.Interpreted) -> interpreted.Interpreted:
    """Attention for sm_90a; the kernel of its mass is sm_80's."""
    found = interpreted.compile_ptx([interpreted.KERNELS / "frame_attention_sm90.cu"], architecture="90a")
    mass = {name: kernel for name, kernel in ptx.kernels.items() if "attention_mass" in name}
    return interpreted.Interpreted(ptx.path, found | mass, 900)
