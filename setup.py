"""Builds the C++ core with CMake, and says what is compiled into it; everything else about the package is in pyproject.toml."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info


class CMakeBuild(build_ext):
    """Configures and builds the CMake project and installs it into the package's directory."""

    def build_extension(self, ext: Extension) -> None:
        ninja = shutil.which("ninja")
        # The tools of an isolated build lie elsewhere each time, so none of them may be left to CMake's cache.
        subprocess.run(
            ["cmake", "-S", ".", "-B", self._build_tree(), "-DLOLRT_PYTHON=ON"]
            + [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
            + [f"-DLOLRT_JAX_INCLUDE={_jax_headers()}"]
            + [f"-DLOLRT_CUDA={os.environ.get('LOLRT_CUDA', 'AUTO')}"]
            + (["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
            check=True,
        )
        subprocess.run(["cmake", "--build", self._build_tree(), "--parallel"], check=True)
        self._install(Path(self.get_ext_fullpath(ext.name)).parent)

    def copy_extensions_to_source(self) -> None:
        """What an editable installation does instead of building a wheel."""
        self._install(Path("lolrt"))

    def _build_tree(self) -> str:
        # Kept from one build to the next, so that the second compiles only what has changed.
        return str(Path("build", f"cmake-{sys.implementation.cache_tag}"))

    def _install(self, package: Path) -> None:
        subprocess.run(["cmake", "--install", self._build_tree(), "--prefix", str(package.resolve())], check=True)


def _jax_headers() -> str:
    """The folder of JAX's headers, where JAX is: in a build that is not isolated."""
    found = importlib.util.find_spec("jaxlib")
    return "" if found is None or found.origin is None else str(Path(found.origin).parent / "include")


class Materials(egg_info):
    """Adds to the metadata of a wheel what of others is compiled into it, pybind11's templates: their licence, and a bill of materials
    (CycloneDX, where PEP 770 has it)."""

    def run(self) -> None:
        super().run()
        folder, made_with = Path(self.egg_info), distribution("pybind11")
        for file in made_with.files or ():
            if file.name == "LICENSE":
                _write(folder / "licenses" / "pybind11" / file.name, file.read_text())
        own = self.distribution.metadata
        bill = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": _component(own.get_name(), own.get_version(), "MIT")},
            "components": [_component("pybind11", made_with.version, "BSD-3-Clause")],
        }
        _write(folder / "sboms" / "lolrt.cdx.json", json.dumps(bill, indent=2) + "\n")


def _component(name: str, version: str, licence: str) -> dict[str, object]:
    where = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library", "bom-ref": where, "name": name, "version": version, "purl": where, "licenses": [{"license": {"id": licence}}],
    }  # fmt: skip


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


setup(ext_modules=[Extension("lolrt._core", [])], cmdclass={"build_ext": CMakeBuild, "egg_info": Materials})
