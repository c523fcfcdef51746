"""The ops that liblolrt_torch registers in torch from C++."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from commands import output_of, run

pytestmark = pytest.mark.slow

# A process has only one of the two registrations, so this one has a process of its own.
SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
from lolrt.ops import library
for name, schema in library.SCHEMAS.items():
    assert str(getattr(torch.ops.lolrt, name).default._schema) == f"lolrt::{schema}", schema
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[2]]))
"""


def test_ops_registered_from_cpp_pass_the_tests_of_those_from_python(installed_with_torch: Path) -> None:
    """Among them torch's own checks, and what is compiled; and they have the same schemas."""
    library, tests = installed_with_torch / "lib" / "liblolrt_torch.so", Path(__file__).parent / "test_torch_ops.py"
    output_of(sys.executable, "-c", SCRIPT, library, tests)


def test_a_process_that_has_the_ops_from_python_keeps_them(installed_with_torch: Path) -> None:
    """Whatever loads the library then, such as the session library."""
    script = """
import sys, torch, lolrt.ops
torch.ops.load_library(sys.argv[1])
x = torch.ones(1, 2, 16)
torch.ops.lolrt.gelu(x)
assert torch.equal(x[0, 0], torch.nn.functional.gelu(torch.ones(16), approximate="tanh"))
"""
    output_of(sys.executable, "-c", script, installed_with_torch / "lib" / "liblolrt_torch.so")


@pytest.mark.parametrize(
    ("version", "told"),
    [("unsigned long long aoti_torch_abi_version(void) { return 0x0209010000000000; }", "2.9.1"), ("", "an older one")],
)
def test_a_process_with_an_older_torch_is_told(version: str, told: str, installed_with_torch: Path, tmp_path: Path) -> None:
    """torch's libraries are replaced by ones without its newer functions."""
    library = installed_with_torch / "lib" / "liblolrt_torch.so"
    (tmp_path / "old.c").write_text(version)
    needed = re.findall(r"NEEDED.*\[(lib(?:torch|c10).*\.so)\]", output_of("readelf", "-d", library))
    assert "libtorch_cpu.so" in needed
    for name in needed:
        output_of("cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / name)
    done = run(sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})", LD_LIBRARY_PATH=str(tmp_path))
    expected = f"liblolrt_torch registers no ops: it is for torch 2.10 or newer, and this process has {told}: update torch\n"
    assert done.returncode == 0 and done.stderr == expected, done.stderr
