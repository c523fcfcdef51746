"""lolrt in graphs of ggml: the example, and the nodes against calls of the ops."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import output_of, run

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


# A node that ggml's own tensors do not fit, and what it says.
REFUSED = """
#include <lolrt/ggml.hpp>
int main() {
  ggml_context *context = ggml_init({1 << 20, nullptr, false});
  ggml_tensor *x = ggml_new_tensor_4d(context, GGML_TYPE_F32, 4, 1, 1, 1);
  try {
    lolrt::ggml::NODE;
  } catch (const lolrt::ggml::Error &error) {
    std::puts(error.what());
  }
}
"""
NODES = "KvWrite(context, x, x, x, x)", "FrameAttention(context, x, x, x, 1)"


def compiled(build: Path, headers: Path, source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """A program with some ggml's headers and the libraries of the build."""
    libraries = [PACKAGE / "lib", build / "ggml" / "src"]
    flags = [part for folder in libraries for part in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    include = [f"-I{folder}" for folder in (PACKAGE / "include", ROOT / "tests" / "cpp", headers)]
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fmax-errors=1"]
    return run("c++", *options, *include, source, *flags, "-llolrt", "-lggml", "-lggml-cpu", "-lggml-base", "-o", to)


def test_nodes_have_the_bits_of_calls_and_tell_what_fails(build: Path, tmp_path: Path) -> None:
    assert SOURCE
    done = compiled(build, SOURCE / "include", ROOT / "tests" / "cpp" / "test_ggml.cpp", tmp_path / "nodes")
    assert done.returncode == 0, done.stderr
    assert output_of(tmp_path / "nodes") == ""


@pytest.mark.parametrize("node", NODES)
def test_a_program_that_was_built_for_another_ggml_is_told(node: str, build: Path, tmp_path: Path) -> None:
    """One whose tensors have one field more, and one without nodes of this kind."""
    assert SOURCE
    source, program, headers = tmp_path / "refused.cpp", tmp_path / "refused", tmp_path / "include"
    source.write_text(REFUSED.replace("NODE", node))
    shutil.copytree(SOURCE / "include", headers)
    text = (headers / "ggml.h").read_text()
    told = "this program was built with another ggml.h than the ggml that it runs with: build both from one source\n"
    right = "page_table: expected GGML_TYPE_I32\n"
    for before, expected in (("", right), ("int64_t ne[", told), ("enum ggml_op op;", told), ("void * data;", told)):
        assert text.count(f"        {before}") == 1 or not before
        (headers / "ggml.h").write_text(text.replace(f"        {before}", f"        int64_t more; {before}") if before else text)
        done = compiled(build, headers, source, program)
        assert done.returncode == 0, done.stderr
        assert output_of(program) == expected, before
    (headers / "ggml.h").write_text(text.replace("ggml_custom_4d", "ggml_custom_of_another_name"))
    failed = compiled(build, headers, source, program)
    assert "lolrt/ggml.hpp needs ggml_custom_4d, which ggml has since the spring of 2025: build with a newer ggml" in failed.stderr
