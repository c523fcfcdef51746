"""What a run of the laboratory will cost, predicted from a timed piece of it."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object]) -> float:
    """The processor time of `work` in seconds, of all threads of this process together."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def minutes(seconds: float) -> str:
    amount = seconds / 60
    return f"about {f'{amount:.2g}' if amount < 10 else f'{amount:,.0f}'} CPU minutes"
