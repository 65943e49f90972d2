"""How far a long computation is, for the logger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("sklearn_g2d")

SECONDS_BETWEEN_REPORTS = 10.0


def reporter(whose: str, n: int, what: str) -> Callable[[int], None]:
    """Give a function that is told how many of `n` are done, and reports it every ten seconds."""
    told = time.monotonic()

    def report(n_done: int) -> None:
        nonlocal told
        if time.monotonic() - told > SECONDS_BETWEEN_REPORTS:
            told = time.monotonic()
            logger.info("%s: %d of %d %s", whose, n_done, n, what)

    return report
