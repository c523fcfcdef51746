"""Builds the C++ core with CMake; everything else about the package is in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


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


setup(ext_modules=[Extension("lolrt._core", [])], cmdclass={"build_ext": CMakeBuild})
