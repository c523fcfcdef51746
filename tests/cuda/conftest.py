from __future__ import annotations

from collections.abc import Iterator

import emulated
import pytest


@pytest.fixture(scope="session")
def emulated_library() -> emulated.Emulated:
    return emulated.Emulated(emulated.build())


# The tile of attention differs between architectures, and sm_90 has a kernel of its own; the seeds give the order of things as they
# come, and a random one.
@pytest.fixture(params=[(800, 0), (860, 7), (900, 0), (900, 5)], ids=["sm_80", "sm_86-random", "sm_90", "sm_90-random"])
def cuda(request: pytest.FixtureRequest, emulated_library: emulated.Emulated) -> Iterator[emulated.Emulated]:
    architecture, seed = request.param
    emulated_library.settings(seed, architecture)
    yield emulated_library
    emulated_library.settings()
