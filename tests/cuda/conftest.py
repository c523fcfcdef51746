from __future__ import annotations

from collections.abc import Iterator

import emulated
import interpreted
import pytest


@pytest.fixture(scope="session")
def emulated_library() -> emulated.Emulated:
    return emulated.Emulated(emulated.build())


# The tile of attention differs between architectures; the seeds give the order of things as they come, and a random one.
@pytest.fixture(params=[(800, 0), (860, 7)], ids=["sm_80", "sm_86-random"])
def cuda(request: pytest.FixtureRequest, emulated_library: emulated.Emulated) -> Iterator[emulated.Emulated]:
    architecture, seed = request.param
    emulated_library.settings(seed, architecture)
    yield emulated_library
    emulated_library.settings()


@pytest.fixture(scope="session")
def ptx(emulated_library: emulated.Emulated) -> interpreted.Interpreted:
    if not interpreted.has_nvcc():
        pytest.skip("there is no nvcc, whose PTX would be run")
    return interpreted.Interpreted(emulated.BUILD / emulated.LIBRARY.name, interpreted.compile_ptx(interpreted.UNITS))
