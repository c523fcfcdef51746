"""Runs the fuzz target of readers.py. The first folder on the command line collects inputs that reach new code.

pip install atheris
python -m fuzz build/fuzz -max_total_time=300 -rss_limit_mb=4096 -timeout=10 -len_control=0
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris
import torch  # noqa: F401 - imported before instrumentation: it is large, and not what is tested

INSTRUMENTED = ("pickletools", "tomllib", "zipfile")
for name in INSTRUMENTED:  # torch has imported them, uninstrumented
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=["lolrt.checkpoint", *INSTRUMENTED]):
    from fuzz.readers import run, seeds

corpus = Path(sys.argv[1])
corpus.mkdir(parents=True, exist_ok=True)
for name, content in seeds().items():
    (corpus / name).write_bytes(content)
with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
    atheris.Setup(sys.argv, lambda data: run(data, Path(folder)))
    atheris.Fuzz()
