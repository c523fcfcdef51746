"""A wheel built from the source distribution of a clean copy, and the same build installed under a prefix."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from commands import output_of
from distribution import ROOT, unpacked_sources

from lolrt import _core

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the source distribution of the repository's files unpacks to, with `wheels/` built in it."""
    unpacked = unpacked_sources(tmp_path_factory.mktemp("sources"))
    wheel = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", unpacked / "wheels", unpacked)
    output_of(*wheel, LOLRT_CUDA="OFF")  # the editable installation has already built the CUDA library
    return unpacked


@pytest.fixture(scope="module")
def site(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip would."""
    (wheel,) = (sources / "wheels").glob("lolrt-*.whl")
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_wheel_holds_the_library_and_what_others_need_of_it(site: Path) -> None:
    package = site / "lolrt"
    for name in (
        "lib/liblolrt.so",
        "lib/cmake/lolrt/lolrtConfig.cmake",
        "lib/pkgconfig/lolrt.pc",
        "include/lolrt/lolrt.h",
        "_core.pyi",
        "py.typed",
    ):
        assert (package / name).is_file(), name
    assert len(list(package.glob("_core*.so"))) == 1
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"lolrt"}


def test_wheel_can_be_anywhere(sources: Path, site: Path) -> None:
    """It contains no path of the build, and the extension finds its library in its own folder."""
    for path in [*site.rglob("*.cmake"), *site.rglob("*.pc")]:
        assert str(sources) not in path.read_text(), path
    moved = site.with_name("moved")
    shutil.copytree(site, moved)
    script = moved / "script.py"  # its directory comes first on the path
    script.write_text("from lolrt import _core; print(_core.__file__, _core.isas()); print(open('/proc/self/maps').read())")
    said = output_of(sys.executable, script)
    assert said.startswith(str(moved)) and "scalar" in said.splitlines()[0]
    assert set(re.findall(r"/\S*liblolrt\.so", said)) == {str(moved / "lolrt" / "lib" / "liblolrt.so")}


def test_source_distribution_is_whole(sources: Path) -> None:
    """The CUDA sources too, which were not built."""
    kept = output_of("git", "-C", ROOT, "ls-files", "csrc", "cmake", "lolrt", "CMakeLists.txt").splitlines()
    assert "csrc/cuda/kernels.cpp" in kept and [name for name in kept if not (sources / name).is_file()] == []


def test_cmake_installs_the_same_below_a_prefix(sources: Path, tmp_path: Path) -> None:
    (build,) = (sources / "build").glob("cmake-*")
    output_of("cmake", "--install", build, "--prefix", tmp_path / "prefix")
    output_of("cmake", "-S", ROOT / "examples" / "embed_c", "-B", tmp_path / "embed", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    output_of("cmake", "--build", tmp_path / "embed")
    assert "largest difference" in output_of(tmp_path / "embed" / "embed")


def test_library_exports_its_interface_only(site: Path) -> None:
    symbols = output_of("nm", "-D", "--defined-only", site / "lolrt" / "lib" / "liblolrt.so")
    exported = set(re.findall(r" [TDB] (\S+)", symbols))
    declared = set(re.findall(r"\b(lolrt_\w+)\(", (ROOT / "csrc" / "include" / "lolrt" / "lolrt.h").read_text()))
    bridged = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "embedding.md").read_text(), re.MULTILINE))
    assert exported == declared | {f"__tvm_ffi_{name}" for name in bridged}


def test_nothing_compiled_for_one_cpu_is_shared_with_another(sources: Path) -> None:
    """A weak symbol of a kernel's object file could replace the one of a translation unit that every CPU must be able to run."""
    objects = list((sources / "build").glob("cmake-*/CMakeFiles/lolrt.dir/csrc/cpu/*.o"))
    assert objects
    for path in objects:
        assert not re.findall(r" [WV] \S+", output_of("nm", "--defined-only", path)), path.name


def test_versions_agree() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    built = re.search(r"project\(lolrt VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert declared and built and declared[1] == built[1] == _core.version()
    abi = re.search(r"#define LOLRT_ABI_VERSION (\d+)", (ROOT / "csrc" / "include" / "lolrt" / "lolrt.h").read_text())
    assert abi and int(abi[1]) == _core.abi_version()
