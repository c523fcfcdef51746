"""The files that the repository's source distribution unpacks to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from commands import output_of

ROOT = Path(__file__).parent.parent
BUILT = ("_core*.so", "lib", "include", "__pycache__")  # files that an editable installation leaves in the package


def unpacked_sources(folder: Path) -> Path:
    """Builds the source distribution from a clean copy in this folder."""
    copy, made = folder / "copy", folder / "made"
    copy.mkdir()
    for name in ("CMakeLists.txt", "MANIFEST.in", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("cmake", "csrc"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copytree(ROOT / "lolrt", copy / "lolrt", ignore=shutil.ignore_patterns(*BUILT))
    code = f"import os, setuptools.build_meta as build; os.chdir({str(copy)!r}); build.build_sdist({str(made)!r})"
    made.mkdir()
    output_of(sys.executable, "-c", code)
    (archive,) = made.glob("lolrt-*.tar.gz")
    shutil.unpack_archive(archive, made)
    (unpacked,) = (path for path in made.iterdir() if path.is_dir())
    return unpacked
