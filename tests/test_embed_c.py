"""The C example against the installed package, found by CMake and by pkg-config."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import output_of, run

import lolrt
from lolrt import _core

pytestmark = pytest.mark.whole

EXAMPLE = Path(__file__).parent.parent / "examples" / "embed_c"
PACKAGE = Path(lolrt.__path__[0])
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
LINE = r"lolrt \d+\.\d+\.\d+ \((\w+)\): largest difference to double precision \d\.\de-0\d\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("embed_c")
    output_of("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={PACKAGE}", f"-DCMAKE_C_FLAGS={' '.join(WARNINGS)}")
    output_of("cmake", "--build", build)
    return build / "embed"


def test_program_found_by_cmake_is_right(program: Path) -> None:
    assert re.fullmatch(LINE, output_of(program))


def test_environment_names_the_kernels(program: Path) -> None:
    match = re.fullmatch(LINE, output_of(program, LOLRT_ISA="scalar"))
    assert match and match[1] == "scalar"
    failed = run(program, LOLRT_ISA="z80")
    assert failed.returncode == 1
    assert re.search(r'LOLRT_ISA is "z80"; this build and CPU have: .*scalar', failed.stderr)


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="no pkg-config")
def test_program_found_by_pkg_config_is_right(tmp_path: Path) -> None:
    flags = output_of("pkg-config", "--cflags", "--libs", "lolrt", PKG_CONFIG_PATH=str(PACKAGE / "lib" / "pkgconfig")).split()
    output_of("cc", "-std=c99", *WARNINGS, EXAMPLE / "main.c", *flags, "-lm", "-o", tmp_path / "embed")
    assert re.fullmatch(LINE, output_of(tmp_path / "embed"))


def test_a_program_of_another_abi_is_told(tmp_path: Path) -> None:
    header = shutil.copytree(PACKAGE / "include", tmp_path / "include") / "lolrt" / "lolrt.h"
    header.write_text(re.sub(r"(#define LOLRT_ABI_VERSION) \d+", r"\1 1", header.read_text()))
    link = [f"-L{PACKAGE / 'lib'}", "-llolrt", f"-Wl,-rpath,{PACKAGE / 'lib'}", "-lm"]
    output_of("cc", "-std=c99", *WARNINGS, f"-I{tmp_path / 'include'}", EXAMPLE / "main.c", *link, "-o", tmp_path / "embed")
    failed = run(tmp_path / "embed")
    told = f"built for ABI 1 of lolrt, and liblolrt {_core.version()} has ABI {_core.abi_version()}: build this program anew\n"
    assert failed.returncode == 1 and failed.stderr == told
