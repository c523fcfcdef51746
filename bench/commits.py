"""Another commit of the project, built beside this one, to be compared with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[1]


def built(commit: str) -> Path:
    """The commit's tree with its library, in build/commits."""
    sha = subprocess.run(["git", "rev-parse", "--verify", f"{commit}^{{commit}}"], cwd=ROOT, check=True, capture_output=True, text=True)
    tree = ROOT / "build" / "commits" / sha.stdout.strip()
    if not tree.exists():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, sha.stdout.strip()], cwd=ROOT, check=True)
    options = [
        "-DLOLRT_PYTHON=ON",
        "-DLOLRT_CUDA=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    output = sys.stderr
    subprocess.run(["cmake", "-S", tree, "-B", tree / "build", *options], check=True, stdout=output)
    subprocess.run(["cmake", "--build", tree / "build", "--parallel"], check=True, stdout=output)
    subprocess.run(["cmake", "--install", tree / "build", "--prefix", tree / "lolrt"], check=True, stdout=output)
    return tree


def script_there(tree: Path, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """A script of this tree, run against another tree's packages; its standard input and output are pipes."""
    code = f"import runpy, sys; sys.argv = {[str(script), *arguments]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
