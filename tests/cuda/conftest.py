from __future__ import annotations

from collections.abc import Iterator

import emulated
import pytest
import torch
from gpu import Gpu


@pytest.fixture(scope="session")
def emulated_library() -> emulated.Emulated:
    return emulated.Emulated(emulated.build())


# The tile of attention differs between architectures; the seeds give the order of things as they come, and a random one. Where there is a
# GPU, the same tests run on it.
@pytest.fixture(params=[(800, 0), (860, 7), None], ids=["sm_80", "sm_86-random", "gpu"])
def cuda(request: pytest.FixtureRequest, emulated_library: emulated.Emulated) -> Iterator[emulated.Emulated | Gpu]:
    if request.param is None:
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        yield Gpu()
        return
    architecture, seed = request.param
    emulated_library.settings(seed, architecture)
    yield emulated_library
    emulated_library.settings()
