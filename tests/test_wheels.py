"""What a wheel for others is: the same bytes from two builds, small, repaired by auditwheel, with a bill of what is compiled in."""

from __future__ import annotations

import json
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import BIN, output_of
from distribution import ROOT, unpacked_sources

pytestmark = pytest.mark.slow


def built(folder: Path) -> Path:
    """The wheel of a clean copy that lies in this folder."""
    folder.mkdir()
    source = unpacked_sources(folder)
    made = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder / "wheels", source)
    output_of(*made, LOLRT_CUDA="OFF", SOURCE_DATE_EPOCH="1700000000")
    (wheel,) = (folder / "wheels").glob("lolrt-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel") / "here")


def test_two_builds_have_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    """In folders of other names, which a build may leave in what it makes."""
    again = built(tmp_path / "elsewhere, with a longer name")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert [name for name in one.namelist() if one.read(name) != other.read(name)] == []
    assert wheel.read_bytes() == again.read_bytes()


def test_auditwheel_makes_it_one_for_all_distributions(wheel: Path, tmp_path: Path) -> None:
    """It needs nothing beside what every Linux has, so that nothing is copied into it."""
    output_of(BIN / "auditwheel", "repair", "--wheel-dir", tmp_path, wheel)
    (repaired,) = tmp_path.glob("lolrt-*-manylinux_*_x86_64.whl")
    assert repaired.stat().st_size < 30e6
    with zipfile.ZipFile(repaired) as archive:
        assert {name.partition("/")[0].partition("-")[0] for name in archive.namelist()} == {"lolrt"}
        archive.extractall(tmp_path / "site")
    script = tmp_path / "site" / "script.py"  # its directory comes first on the path
    script.write_text("from lolrt import _core; print(_core.__file__, _core.isas())")
    said = output_of(sys.executable, script)
    assert said.startswith(str(tmp_path)) and "scalar" in said


def test_it_says_what_is_compiled_in(wheel: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        bill = archive.read(names["sboms/lolrt.cdx.json"]).decode()
        licences = {name: archive.read(names[name]).decode() for name in ("licenses/LICENSE", "licenses/pybind11/LICENSE")}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert [component["purl"] for component in json.loads(bill)["components"]] == [f"pkg:pypi/pybind11@{version('pybind11')}"]
    assert licences["licenses/LICENSE"] == (ROOT / "LICENSE").read_text() and "Wenzel Jakob" in licences["licenses/pybind11/LICENSE"]


@pytest.mark.parametrize(("platform", "tags"), [("linux", ("manylinux_x86_64", "manylinux_aarch64")), ("macos", ("macosx_arm64",))])
def test_cibuildwheel_knows_which_to_make(platform: str, tags: tuple[str, ...]) -> None:
    pytest.importorskip("cibuildwheel")
    said = output_of(BIN / "cibuildwheel", "--print-build-identifiers", "--platform", platform, ROOT)
    assert said.split() == [f"cp3{minor}-{tag}" for tag in tags for minor in range(10, 15)]
