"""The CUDA half as nvcc has built it, on a machine that may have no GPU; and a library without a CUDA half."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import output_of, run
from emulated import LIBRARY, ROOT, Abi, AbiError, Emulated
from test_emulated_attention import CudaAttention

from bench import sass

pytestmark = pytest.mark.whole

ARCHITECTURES = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}
REGISTERS = 65536  # of a multiprocessor, on all of them
# Bytes of shared memory of a multiprocessor; a block takes 1 KB more than it asks for. NVIDIA, CUDA C++ programming guide, table of
# technical specifications per compute capability.
SHARED_BYTES = {800: 164 * 1024, 860: 100 * 1024, 890: 100 * 1024, 900: 228 * 1024, 1000: 228 * 1024, 1200: 100 * 1024}
BLOCKS = 2  # of frame_attention on a multiprocessor
THREADS = 128
SM90_REGISTERS = 168  # of a thread at the launch of 384, before they move: 40 for those that copy, 232 for the others
CSRC = ROOT / "csrc"


@pytest.fixture(scope="module")
def resources(cuda_half: Path) -> dict[tuple[str, str], dict[str, int]]:
    """The resources of each kernel: (architecture, kernel) -> REG, STACK, LOCAL, ..."""
    tool = sass.tool("cuobjdump")
    if tool is None:
        pytest.skip("there is no cuobjdump: pip install nvidia-cuda-cuobjdump")
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture = kernel = ""
    for line in output_of(tool, "--dump-resource-usage", cuda_half).splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\w+):", line):
            kernel = match[1]
        elif "REG:" in line:
            found[architecture, kernel] = {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", line)}
    return found


def is_tile_of_another_architecture(usage: dict[str, int]) -> bool:
    """Each architecture has one tile size of attention; the kernels of the other are empty."""
    return usage["REG"] <= 8


def test_every_architecture_has_every_kernel(resources: dict[tuple[str, str], dict[str, int]]) -> None:
    assert {architecture for architecture, _ in resources} == ARCHITECTURES
    for architecture in ARCHITECTURES:
        kernels = [kernel for (arch, kernel), usage in resources.items() if arch == architecture]
        full = [kernel for kernel in kernels if not is_tile_of_another_architecture(resources[architecture, kernel])]
        own = sum("frame_attention_sm90_kernel" in kernel for kernel in full)
        assert own == (4 if architecture == "sm_90a" else 0), architecture
        assert sum("frame_attention_kernel" in kernel for kernel in full) == 8 - own, architecture
        assert sum("frame_attention" in kernel for kernel in full) <= 12, architecture


def test_no_kernel_spills_or_uses_local_memory(resources: dict[tuple[str, str], dict[str, int]]) -> None:
    assert [key for key, usage in resources.items() if usage["STACK"] or usage["LOCAL"]] == []


def test_registers_let_two_blocks_of_attention_run_side_by_side(resources: dict[tuple[str, str], dict[str, int]]) -> None:
    attention = {key: usage["REG"] for key, usage in resources.items() if "frame_attention_kernel" in key[1]}
    for key, registers in attention.items():
        assert -(-registers // 8) * 8 * THREADS * BLOCKS <= REGISTERS, key
    # The kernels on rows wait for memory, so at least half of the 2048 threads should be resident.
    for key, usage in resources.items():
        if "frame_attention_sm90" in key[1]:
            assert usage["REG"] in ({SM90_REGISTERS} if key[0] == "sm_90a" else range(9)), key
        elif key not in attention:
            assert usage["REG"] <= 64, key


def sm90_warnings(source: Path, into: Path) -> str:
    """ptxas' report on the kernels of sm_90a; fails if it spills in either branch of setmaxnreg."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    include = [f"-I{path}" for path in (source.parent, CSRC, CSRC / "include", CSRC / "cuda")]
    spills = ["-Xptxas=-warn-spills,-warn-lmem-usage", "-std=c++17", "-fmad=false", "-arch=sm_90a"]
    done = run(nvcc, *spills, *include, "-cubin", source, "-o", into / "sm90.cubin")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_products_of_warpgroups_are_not_serialised(tmp_path: Path) -> None:
    """C7510 and similar warnings say that ptxas waits for each product separately."""
    said = sm90_warnings(CSRC / "cuda" / "frame_attention_sm90.cu", tmp_path)
    assert "(C75" not in said and "spill" not in said, said


def test_serialised_products_are_seen(tmp_path: Path) -> None:
    """Planted: scores are used while their product is in flight."""
    for source in (CSRC / "cuda").glob("frame_attention_sm90*"):
        shutil.copy(source, tmp_path)
    kernel = tmp_path / "frame_attention_sm90_rows.cuh"
    wait = "      wait_for_products<1>();\n"
    assert kernel.read_text().count(wait) == 1
    kernel.write_text(kernel.read_text().replace(wait, ""))
    assert "(C75" in sm90_warnings(tmp_path / "frame_attention_sm90.cu", tmp_path)


def test_shared_memory_of_sm_90_fits_the_published_shape(emulated_library: Emulated) -> None:
    emulated_library.settings(architecture=900)
    emulated_library.counts()
    CudaAttention(torch.bfloat16, dim=128, tokens=2, page_tokens=2, pages=1, heads=1, cuda=emulated_library).run()
    emulated_library.settings()
    assert emulated_library.counts()["shared_bytes"] + 1024 <= SHARED_BYTES[900]


@pytest.mark.parametrize("architecture", [architecture for architecture in SHARED_BYTES if architecture != 900])
def test_shared_memory_lets_two_blocks_of_attention_run_side_by_side(emulated_library: Emulated, architecture: int) -> None:
    """With the published 3 frames and 22 pairs; bytes are those that the launcher requests."""
    emulated_library.settings(architecture=architecture)
    emulated_library.counts()
    CudaAttention(torch.bfloat16, dim=128, tokens=2, page_tokens=2, pages=1, heads=1, cuda=emulated_library).run()
    emulated_library.settings()
    assert BLOCKS * (emulated_library.counts()["shared_bytes"] + 1024) <= SHARED_BYTES[architecture]


def test_cuda_half_exports_one_function(cuda_half: Path) -> None:
    symbols = output_of("nm", "-D", "--defined-only", cuda_half)
    assert re.findall(r" [A-Z] (\S+)", symbols) == ["lolrt_cuda_kernels"]


@pytest.mark.usefixtures("cuda_half")
def test_without_a_driver_the_call_says_so() -> None:
    if shutil.which("nvidia-smi") and run("nvidia-smi").returncode == 0:
        pytest.skip("this machine has a driver")
    with pytest.raises(
        AbiError, match=r"^gelu: a tensor is on CUDA, but .* \((CUDA driver version|no CUDA-capable device).*; use the CPU$"
    ) as error:
        Abi(LIBRARY).gelu(torch.zeros(1, 1, 8, dtype=torch.bfloat16))
    assert error.value.status == 2


def test_without_the_cuda_half_the_call_says_so(tmp_path: Path) -> None:
    alone = Path(shutil.copy(LIBRARY, tmp_path))
    with pytest.raises(AbiError, match=r"CUDA half does not load \(.*liblolrt_cuda.so.*build with nvcc, or use the CPU") as error:
        Abi(alone).gelu(torch.zeros(1, 1, 8, dtype=torch.bfloat16))
    assert error.value.status == 2 and "\n" not in str(error.value)


HALF = """
static const char *const kernels[8] = {BUILD};  // the first is what a half says of itself; nothing else may be read
const void *lolrt_cuda_kernels() { return kernels; }
"""


@pytest.mark.parametrize("build", ["0.1.0", "0.1.0 0123456789abcdef", ""], ids=["before there were hashes", "other headers", "nameless"])
def test_a_cuda_half_of_other_headers_is_refused(tmp_path: Path, build: str) -> None:
    """One that was built before or after, in place of which a call would end in memory that is no function."""
    alone = Path(shutil.copy(LIBRARY, tmp_path))
    (tmp_path / "half.c").write_text(HALF)
    output_of("gcc", "-shared", "-fPIC", f'-DBUILD="{build}"', tmp_path / "half.c", "-o", tmp_path / "liblolrt_cuda.so")
    with pytest.raises(AbiError, match=rf"liblolrt_cuda.so is of build {build}, and liblolrt.so of 0.1.0 [0-9a-f]{{16}}\)") as error:
        Abi(alone).gelu(torch.zeros(1, 1, 8, dtype=torch.bfloat16))
    assert error.value.status == 2 and "\n" not in str(error.value)


def shared_headers() -> set[Path]:
    """What both libraries include of csrc, found by reading the includes."""
    found, new = set[Path](), {CSRC / "core" / "cuda.h"}
    while new:
        found |= new
        named = [name for path in new for name in re.findall(r'#include "(.*)"', path.read_text())]
        new = {path for name in named for path in (CSRC / name, CSRC / "include" / name) if path.exists()} - found
    return {path.relative_to(CSRC) for path in found}


def test_every_header_that_the_libraries_share_tells_them_apart(tmp_path: Path) -> None:
    headers = shared_headers()
    assert len(headers) >= 5
    shutil.copytree(ROOT / "cmake", tmp_path / "cmake")
    for header in headers:
        (tmp_path / "csrc" / header).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CSRC / header, tmp_path / "csrc" / header)
    script = tmp_path / "say.cmake"
    script.write_text("include(${CMAKE_CURRENT_LIST_DIR}/cmake/shared_headers.cmake)\nmessage(${LOLRT_SHARED_HEADERS})")
    said = [run("cmake", "-P", script).stderr.strip()]
    for header in headers:
        with (tmp_path / "csrc" / header).open("a") as file:
            file.write("\n")
        said.append(run("cmake", "-P", script).stderr.strip())
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in said) and len(set(said)) == len(said)


def test_the_emulator_names_planted_mistakes(emulated_library: Emulated) -> None:
    output_of(emulated_library.path.with_name("test_simt"))
