"""lolrt in graphs of ggml: the example, and the nodes against calls of the ops."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from commands import output_of

import lolrt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = Path(lolrt.__path__[0])
# What `make .venv/ggml` unpacks there.
SOURCE = next(Path(sys.prefix).glob("ggml-source/*/vendor/llama.cpp/ggml"), None)
LINE = r"12 frames on (\d) threads of (\d) in the process: ([0-9a-f]{16}), largest difference to double precision \d\.\de-0\d\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if SOURCE is None:
        pytest.skip("needs ggml's source: make .venv/ggml")
    folder = tmp_path_factory.mktemp("embed_ggml")
    options = [f"-DGGML_SOURCE={SOURCE}", f"-DCMAKE_PREFIX_PATH={PACKAGE}", "-DGGML_NATIVE=OFF", "-DGGML_LLAMAFILE=OFF"]
    output_of("cmake", "-S", ROOT / "examples" / "embed_ggml", "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options)
    output_of("cmake", "--build", folder, "--parallel", "2")
    return folder


def test_a_layer_in_a_graph_is_right_on_any_number_of_the_hosts_threads(build: Path) -> None:
    """With the same bits, and no other thread in the process."""
    found = [re.fullmatch(LINE, output_of(build / "embed", str(threads))) for threads in (1, 2, 5)]
    assert [(one[1], one[2]) for one in found if one] == [("1", "1"), ("2", "2"), ("5", "5")]
    assert len({one[3] for one in found if one}) == 1


def test_nodes_have_the_bits_of_calls_and_tell_what_fails(build: Path, tmp_path: Path) -> None:
    libraries = [PACKAGE / "lib", build / "ggml" / "src"]
    flags = [part for folder in libraries for part in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    include = [f"-I{folder}" for folder in (PACKAGE / "include", ROOT / "tests" / "cpp", SOURCE / "include")]  # type: ignore[operator]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    source = ROOT / "tests" / "cpp" / "test_ggml.cpp"
    output_of(
        "c++", "-std=c++17", *warnings, *include, source, *flags, "-llolrt", "-lggml", "-lggml-cpu", "-lggml-base", "-o", tmp_path / "nodes"
    )
    assert output_of(tmp_path / "nodes") == ""
